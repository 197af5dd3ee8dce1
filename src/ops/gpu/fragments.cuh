// Products of small tiles by a warp: C [16, 8] += A [16, 16] B [16, 8], C in f32, as mma.sync.m16n8k16 has them. Of lane
// 4 g + t, every pair holds two values that are neighbours along the sum:
//   A: (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)       row, first column of the pair
//   B: (2t, g), (2t + 8, g)                                     first row of the pair, column
//   C: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)       row, column
#pragma once
#include "common.cuh"

// Two values: a register of halves, two of f32.
template <class V> struct PairOf {
    using Type = u32;
};
template <> struct PairOf<float> {
    using Type = float2;
};

template <class V> struct FragmentA {
    typename PairOf<V>::Type p[4];
};
template <class V> struct FragmentB {
    typename PairOf<V>::Type p[2];
};
struct FragmentC {
    float v[4];
};

DEVICE u32 lane_row() { return threadIdx.x % WARP / 4; }
DEVICE u32 lane_pair() { return threadIdx.x % 4 * 2; }

DEVICE u32 bits(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }
DEVICE u32 bits(__half x) { return __half_as_ushort(x); }

template <class V> DEVICE u32 paired(V first, V second) { return bits(first) | bits(second) << 16; }
DEVICE float2 paired(float first, float second) { return make_float2(first, second); }

// The two values at p.
template <class V> DEVICE typename PairOf<V>::Type pair_at(const V* p) {
    return *reinterpret_cast<const typename PairOf<V>::Type*>(p);
}

// A from rows of `stride` values: A[i][k] = p[i * stride + k].
template <class V> DEVICE FragmentA<V> rows_as_a(const V* p, u32 stride) {
    const V* at = p + lane_row() * stride + lane_pair();
    return {{pair_at(at), pair_at(at + 8 * stride), pair_at(at + 8), pair_at(at + 8 * stride + 8)}};
}

// B from the rows of its transpose: B[k][n] = p[n * stride + k].
template <class V> DEVICE FragmentB<V> rows_as_b(const V* p, u32 stride) {
    const V* at = p + lane_row() * stride + lane_pair();
    return {{pair_at(at), pair_at(at + 8)}};
}

// B from its own rows: B[k][n] = p[k * stride + n].
template <class V> DEVICE FragmentB<V> columns_as_b(const V* p, u32 stride) {
#ifndef ASFT_SHIM
    if constexpr (sizeof(V) == 2) {
        FragmentB<V> b;
        // Each of the lanes 0 to 15 gives the address of one row of eight values.
        const u32 row = __cvta_generic_to_shared(p + threadIdx.x % 16 * stride);
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(b.p[0]), "=r"(b.p[1])
                     : "r"(row)
                     : "memory");
        return b;
    } else
#endif
    {
        const V* at = p + lane_pair() * stride + lane_row();
        return {{paired(at[0], at[stride]), paired(at[8 * stride], at[9 * stride])}};
    }
}

// Two neighbouring tiles of C, rounded to V, as the A of another product.
template <class V> DEVICE FragmentA<V> as_a(const FragmentC& left, const FragmentC& right) {
    const auto pair = [](float first, float second) { return paired(rounded<V>(first), rounded<V>(second)); };
    return {{pair(left.v[0], left.v[1]), pair(left.v[2], left.v[3]), pair(right.v[0], right.v[1]),
             pair(right.v[2], right.v[3])}};
}

// There are no units for f32: lanes pass their values on. A rolled loop, as the driver would translate long ones for minutes.
DEVICE void multiply_by_shuffles(FragmentC& c, const FragmentA<float>& a, const FragmentB<float>& b) {
    const u32 row = lane_row() * 4, column = lane_pair() * 4;
#pragma unroll 1
    for (u32 holder = 0; holder < 4; holder++) {
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            const u32 half = k / 2;
            const auto side = [&](float2 pair) { return k % 2 ? pair.y : pair.x; };
            const float top = __shfl_sync(ALL_LANES, side(a.p[2 * half]), row + holder);
            const float bottom = __shfl_sync(ALL_LANES, side(a.p[2 * half + 1]), row + holder);
            const float left = __shfl_sync(ALL_LANES, side(b.p[half]), column + holder);
            const float right = __shfl_sync(ALL_LANES, side(b.p[half]), column + 4 + holder);
            c.v[0] += top * left;
            c.v[1] += top * right;
            c.v[2] += bottom * left;
            c.v[3] += bottom * right;
        }
    }
}

#ifdef ASFT_SHIM
template <class V> DEVICE void multiply(FragmentC& c, const FragmentA<V>& a, const FragmentB<V>& b) {
    shim::multiply<V>(c.v, a.p, b.p);
}
#else
DEVICE void multiply(FragmentC& c, const FragmentA<float>& a, const FragmentB<float>& b) { multiply_by_shuffles(c, a, b); }

#define MULTIPLY(V, name)                                                                                       \
    DEVICE void multiply(FragmentC& c, const FragmentA<V>& a, const FragmentB<V>& b) {                          \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                     \
                     ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                     \
                     : "+f"(c.v[0]), "+f"(c.v[1]), "+f"(c.v[2]), "+f"(c.v[3])                                   \
                     : "r"(a.p[0]), "r"(a.p[1]), "r"(a.p[2]), "r"(a.p[3]), "r"(b.p[0]), "r"(b.p[1]));           \
    }
MULTIPLY(__nv_bfloat16, "bf16")
MULTIPLY(__half, "f16")
#undef MULTIPLY
#endif
