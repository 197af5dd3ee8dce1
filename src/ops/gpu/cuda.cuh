// The words that kernels are written in, as nvcc has them. metal.h says the same to Metal's compiler, for the files that it
// takes too; shim/shim.h says what CUDA's own words mean to the C++ compiler.
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

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef __nv_bfloat16 Bfloat;
typedef __half Half;

// Arguments of a kernel: memory that is read or written, that may be missing, and numbers.
#define IN(V, name) const V* name
#define OUT(V, name) V* name
#define MAYBE_IN(V, name) const V* name
#define MAYBE_OUT(V, name) V* name
#define NUMBER(V, name) V name
#define GIVEN(name) (name != nullptr)

// Where pointers point to, and constants that are no locals.
#define GLOBAL
#define SHARED
#define CONSTANT constexpr
// A float for each warp, which the block shares as `partial`.
#define PARTIAL __shared__ float partial[WARP]

#define THREAD threadIdx.x
#define THREADS blockDim.x
#define BLOCK_X blockIdx.x
#define BLOCK_Y blockIdx.y
#define BLOCKS_Y gridDim.y
#define BARRIER __syncthreads()
#define FROM_LANE_XOR(x, mask) __shfl_xor_sync(ALL_LANES, x, mask)

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

// Whether the values at `p` can be accessed 16 bytes at a time; where this is not defined, no access is wider than a value.
#define HAS_WIDE_ACCESS
DEVICE bool aligned(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }
