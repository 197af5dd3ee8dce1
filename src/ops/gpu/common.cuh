// What the kernels share: reading and writing values in packs, and sums over a warp or a block. Kernels of rows and of values
// are written in words that cuda.cuh has for nvcc and metal.h for Metal's compiler; attention, the penalty and AdamW are CUDA C.
//
// Tensors are contiguous. T is the type of activations; everything is computed in f32, widened as it is read and rounded
// to nearest even as it is written. No kernel adds atomically, so results do not depend on the order of blocks.
#pragma once
#include "cuda.cuh"

CONSTANT u32 WARP = 32;
CONSTANT u32 ALL_LANES = 0xffffffffu;
// Values that a thread reads or writes at once.
CONSTANT u32 PACK = 8;

struct Pack {
    float v[PACK];
};

#ifdef HAS_WIDE_ACCESS
template <class V> struct alignas(sizeof(V) * PACK > 16 ? 16 : sizeof(V) * PACK) Packed {
    V v[PACK];
};
#endif

// PACK values from p[at] on; 0 in the place of those at `end` and beyond.
template <class V> DEVICE Pack load(GLOBAL const V* p, u64 at, u64 end) {
    Pack out;
#ifdef HAS_WIDE_ACCESS
    if (at + PACK <= end && aligned(p + at)) {
        const Packed<V> packed = *reinterpret_cast<const Packed<V>*>(p + at);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) out.v[i] = wide(packed.v[i]);
        return out;
    }
#endif
#pragma unroll
    for (u32 i = 0; i < PACK; i++) out.v[i] = at + i < end ? wide(p[at + i]) : 0.f;
    return out;
}

// Writes PACK values from p[at] on, but none at `end` or beyond.
template <class V> DEVICE void store(GLOBAL V* p, u64 at, u64 end, Pack x) {
#ifdef HAS_WIDE_ACCESS
    if (at + PACK <= end && aligned(p + at)) {
        Packed<V> packed;
#pragma unroll
        for (u32 i = 0; i < PACK; i++) packed.v[i] = rounded<V>(x.v[i]);
        *reinterpret_cast<Packed<V>*>(p + at) = packed;
        return;
    }
#endif
#pragma unroll
    for (u32 i = 0; i < PACK; i++)
        if (at + i < end) p[at + i] = rounded<V>(x.v[i]);
}

// The first value of a kernel's thread, if a row or tensor is shared out in packs.
#define FIRST_VALUE (((u64)BLOCK_X * THREADS + THREAD) * PACK)

struct Add {
    static DEVICE_MEMBER float of(float a, float b) { return a + b; }
};
struct Max {
    static DEVICE_MEMBER float of(float a, float b) { return fmaxf(a, b); }
};

// The combination of all lanes' values, in the same order on every lane.
template <class Combine> DEVICE float across_warp(float x) {
#pragma unroll
    for (u32 offset = WARP / 2; offset > 0; offset /= 2) x = Combine::of(x, FROM_LANE_XOR(x, offset));
    return x;
}

// The combination of all threads' values. Blocks are of whole warps, and at most 32 of them. `neutral` changes nothing.
template <class Combine>
DEVICE float across_block(float x, float neutral, SHARED float* partial, u32 place, u32 threads) {
    x = across_warp<Combine>(x);
    if (place % WARP == 0) partial[place / WARP] = x;
    BARRIER;
    x = place % WARP < threads / WARP ? partial[place % WARP] : neutral;
    // Before the next combination writes to `partial`.
    BARRIER;
    return across_warp<Combine>(x);
}

DEVICE float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }
