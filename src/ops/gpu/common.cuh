// What every kernel here uses. The files are CUDA C. nvcc compiles each three times, with VALUE one of float,
// __nv_bfloat16 and __half; a C++ compiler compiles them with shim/shim.h in the place of CUDA's own headers.
//
// Tensors are contiguous. T is the type of activations; everything is computed in f32, widened as it is read and rounded
// to nearest even as it is written. No kernel adds atomically, so results do not depend on the order of blocks.
#pragma once

#ifdef ASFT_SHIM
#include "shim/shim.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
// An entry point. Its threads do not return before a barrier that others wait at.
#define KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
// The block's dynamic shared memory, of which a launch gives `bytes`.
#define DYNAMIC_SHARED(Type, name, bytes)                         \
    extern __shared__ __align__(16) unsigned char dynamic_memory[]; \
    Type* name = reinterpret_cast<Type*>(dynamic_memory)
using T = VALUE;
#endif

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
// Values that a thread reads or writes at once.
constexpr u32 PACK = 8;

DEVICE float wide(float x) { return x; }
DEVICE float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
DEVICE float wide(__half x) { return __half2float(x); }

DEVICE void narrow(float x, float& out) { out = x; }
DEVICE void narrow(float x, __nv_bfloat16& out) { out = __float2bfloat16(x); }
DEVICE void narrow(float x, __half& out) { out = __float2half(x); }

// x, rounded to the type V.
template <class V> DEVICE V rounded(float x) {
    V out;
    narrow(x, out);
    return out;
}

struct Pack {
    float v[PACK];
};

template <class V> struct alignas(sizeof(V) * PACK > 16 ? 16 : sizeof(V) * PACK) Packed {
    V v[PACK];
};

// Whether the values at `p` can be accessed 16 bytes at a time.
DEVICE bool aligned(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

// PACK values from p[at] on; 0 in the place of those at `end` and beyond.
template <class V> DEVICE Pack load(const V* p, u64 at, u64 end) {
    Pack out;
    if (at + PACK <= end && aligned(p + at)) {
        const Packed<V> packed = *reinterpret_cast<const Packed<V>*>(p + at);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) out.v[i] = wide(packed.v[i]);
    } else {
#pragma unroll
        for (u32 i = 0; i < PACK; i++) out.v[i] = at + i < end ? wide(p[at + i]) : 0.f;
    }
    return out;
}

// Writes PACK values from p[at] on, but none at `end` or beyond.
template <class V> DEVICE void store(V* p, u64 at, u64 end, const Pack& x) {
    if (at + PACK <= end && aligned(p + at)) {
        Packed<V> packed;
#pragma unroll
        for (u32 i = 0; i < PACK; i++) narrow(x.v[i], packed.v[i]);
        *reinterpret_cast<Packed<V>*>(p + at) = packed;
    } else {
#pragma unroll
        for (u32 i = 0; i < PACK; i++)
            if (at + i < end) narrow(x.v[i], p[at + i]);
    }
}

// The first value of this thread, if a row or tensor is shared out in packs.
DEVICE u64 first_value() { return ((u64)blockIdx.x * blockDim.x + threadIdx.x) * PACK; }

struct Add {
    static DEVICE_MEMBER float of(float a, float b) { return a + b; }
};
struct Max {
    static DEVICE_MEMBER float of(float a, float b) { return fmaxf(a, b); }
};

// The combination of all lanes' values, in the same order on every lane.
template <class Combine> DEVICE float across_warp(float x) {
#pragma unroll
    for (u32 offset = WARP / 2; offset > 0; offset /= 2) x = Combine::of(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}

// The combination of all threads' values. Blocks are of whole warps, and at most 32 of them. `neutral` changes nothing.
template <class Combine> DEVICE float across_block(float x, float neutral) {
    __shared__ float partial[WARP];
    x = across_warp<Combine>(x);
    if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = x;
    __syncthreads();
    x = threadIdx.x % WARP < blockDim.x / WARP ? partial[threadIdx.x % WARP] : neutral;
    // Before the next combination writes to `partial`.
    __syncthreads();
    return across_warp<Combine>(x);
}

DEVICE float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }
