// The words that kernels are written in, as Metal's compiler has them: see cuda.cuh. build.rs puts a source's text together
// of this file, common.cuh and the source; Metal compiles it on the machine that trains, with VALUE defined.
//
// Buffers are bound in the order of arguments. Math is IEEE's, without contraction: the compiler's options say so before
// Metal 3.2 (metal.rs).
#include <metal_stdlib>
#if __METAL_VERSION__ >= 320
#pragma METAL fp math_mode(safe)
#pragma METAL fp contract(off)
#endif

typedef uchar u8;
typedef uint u32;
typedef ulong u64;
typedef VALUE T;
typedef half Half;
#ifdef __HAVE_BFLOAT__
typedef bfloat Bfloat;
#endif

#define DEVICE static inline
#define DEVICE_MEMBER inline
// A block has up to 1024 threads, as across_block takes.
#define KERNEL(name, ...)                                                                                    \
    [[kernel, max_total_threads_per_threadgroup(1024)]] void name(                                           \
        __VA_ARGS__, uint3 thread_at [[thread_position_in_threadgroup]],                                     \
        uint3 block_at [[threadgroup_position_in_grid]], uint3 block_size [[threads_per_threadgroup]],       \
        uint3 grid_size [[threadgroups_per_grid]])

#define IN(V, name) device const V* name
#define OUT(V, name) device V* name
// With a number that is 0 if there is none; the buffer is then any.
#define MAYBE_IN(V, name) device const V *name, constant uint& has_##name
#define MAYBE_OUT(V, name) device V *name, constant uint& has_##name
#define NUMBER(V, name) constant V& name
#define GIVEN(name) (has_##name != 0)

#define GLOBAL device
#define SHARED threadgroup
#define CONSTANT constexpr constant
// The simulation on a CPU has its own.
#ifndef PARTIAL
#define PARTIAL threadgroup float partial[WARP]
#endif

#define THREAD thread_at.x
#define THREADS block_size.x
#define BLOCK_X block_at.x
#define BLOCK_Y block_at.y
#define BLOCKS_Y grid_size.y
#define BARRIER \
    metal::threadgroup_barrier(metal::mem_flags::mem_device | metal::mem_flags::mem_threadgroup)
#define FROM_LANE_XOR(x, mask) metal::simd_shuffle_xor(x, (ushort)(mask))

// CUDA's names.
#define expf(x) metal::precise::exp(x)
#define logf(x) metal::precise::log(x)
#define sqrtf(x) metal::precise::sqrt(x)
#define tanhf(x) metal::precise::tanh(x)
#define fmaxf(a, b) metal::fmax(a, b)
#define __fadd_rn(a, b) ((a) + (b))
#define __fsub_rn(a, b) ((a) - (b))
#define __fmul_rn(a, b) ((a) * (b))

template <class V> DEVICE float wide(V x) { return float(x); }
// x, rounded to the type V.
template <class V> DEVICE V rounded(float x) { return V(x); }
