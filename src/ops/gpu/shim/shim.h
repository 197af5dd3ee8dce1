// CUDA C for a CPU, as far as the kernels here use it: a launch runs block after block, or a part of them on each of several
// threads. The threads of a block are fibers, each with a stack of its own; one runs until it waits at a barrier or ends. What a
// warp exchanges goes through memory, with a barrier of the warp between writing and reading.
//
// Nothing here depends on time, so a kernel gives the same bits every time. A kernel that lacks a barrier gives others when its
// fibers run in the opposite order, which the tests compare.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __shared__ static thread_local
#define __align__(n) alignas(n)
#define DEVICE static inline
#define DEVICE_MEMBER inline
#define KERNEL(name, ...)                                                    \
    static void name(__VA_ARGS__);                                           \
    static const shim::Registered registered_##name(TYPE_NAME, #name, &name); \
    static void name(__VA_ARGS__)
#define DYNAMIC_SHARED(Type, name, bytes) Type* name = static_cast<Type*>(shim::dynamic_memory(bytes, alignof(Type)))

struct Dim3 {
    unsigned x, y, z;
};
struct float2 {
    float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}
inline __nv_bfloat16 __float2bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }

struct __half {
    _Float16 value;
};
inline float __half2float(__half x) { return static_cast<float>(x.value); }
inline __half __float2half(float x) { return {static_cast<_Float16>(x)}; }
inline uint16_t __half_as_ushort(__half x) {
    uint16_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// Never contracted to a fused operation; nor are others here.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }

// Not `thread_local`, for which each use would ask whether it is initialised.
extern __thread Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

constexpr unsigned LANES = 32;
// Bytes that a lane can pass on at a time.
constexpr size_t SLOT = 64;

void wait_for_block();
void add_metal();
// Leaves `bytes` of this lane to its warp, waits for the others, and returns the first of all lanes' slots.
const unsigned char* exchange(const void* mine, size_t bytes);
void* dynamic_memory(size_t bytes, size_t alignment);

// A kernel by its name, called with addresses of its arguments. The last `added` are the launch's own: the thread, its block,
// and how many there are of each.
struct Registered {
    void (*call)(void (*function)(), void* const* arguments);
    void (*function)();
    unsigned count;

    template <class... A>
    Registered(const char* type, const char* name, void (*kernel)(A...), unsigned added = 0) {
        call = [](void (*function)(), void* const* arguments) {
            apply<A...>(reinterpret_cast<void (*)(A...)>(function), arguments, std::index_sequence_for<A...>());
        };
        function = reinterpret_cast<void (*)()>(kernel);
        count = sizeof...(A) - added;
        add(std::string(name) + "_" + type);
    }

private:
    template <class... A, size_t... I>
    static void apply(void (*kernel)(A...), void* const* arguments, std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
    }
    void add(const std::string& name) const;
};

template <class V> V from_lane(V mine, unsigned lane) {
    V out;
    memcpy(&out, exchange(&mine, sizeof mine) + lane % LANES * SLOT, sizeof out);
    return out;
}

inline float widened(float x) { return x; }
inline float widened(__nv_bfloat16 x) { return __bfloat162float(x); }
inline float widened(__half x) { return __half2float(x); }

// mma.sync.m16n8k16, its fragments as in fragments.cuh: four pairs of A, two of B.
template <class V, class Pair> void multiply(float (&c)[4], const Pair (&a)[4], const Pair (&b)[2]) {
    V values[12];
    static_assert(sizeof values == sizeof a + sizeof b, "a pair is two values");
    memcpy(values, a, sizeof a);
    memcpy(values + 8, b, sizeof b);
    float mine[12];
    for (unsigned i = 0; i < 12; i++) mine[i] = widened(values[i]);
    const unsigned char* slots = exchange(mine, sizeof mine);
    const auto of_lane = [&](unsigned lane) { return reinterpret_cast<const float*>(slots + lane * SLOT); };
    const unsigned lane = threadIdx.x % LANES, row = lane / 4 * 4, column = lane % 4 * 8;
    for (unsigned holder = 0; holder < 4; holder++) {
        const float *rows = of_lane(row + holder), *left = of_lane(column + holder) + 8;
        const float* right = of_lane(column + 4 + holder) + 8;
        for (unsigned k = 0; k < 4; k++) {
            // Pairs of A: the row, the row eight below, and both again eight columns on.
            const float top = rows[k / 2 * 4 + k % 2], bottom = rows[k / 2 * 4 + 2 + k % 2];
            c[0] += top * left[k];
            c[1] += top * right[k];
            c[2] += bottom * left[k];
            c[3] += bottom * right[k];
        }
    }
}

}  // namespace shim

inline void __syncthreads() { shim::wait_for_block(); }
inline float __shfl_xor_sync(unsigned, float x, unsigned mask) { return shim::from_lane(x, threadIdx.x ^ mask); }
inline float __shfl_sync(unsigned, float x, unsigned lane) { return shim::from_lane(x, lane); }
