// From ggml's blocks to the type of a product. The formats are in src/quant/ggml: the same operations in the same order, so that
// in f32 the bits are the CPU's. In CUDA C: on Metal no weight is of such blocks (src/ops/weight/packed/ggml.rs).
#include "common.cuh"

// An f16 number at an even address.
DEVICE float factor(const u8* at) { return wide(*reinterpret_cast<const Half*>(at)); }

// The formats: the values and bytes of a block, and its value v.
struct Q4_0 {
    static constexpr u32 LENGTH = 32, BYTES = 18;
    static DEVICE_MEMBER float value(const u8* block, u32 v) {
        const int code = block[2 + v % 16] >> (v / 16 * 4) & 15;
        return factor(block) * (float)(code - 8);
    }
};

struct Q4_1 {
    static constexpr u32 LENGTH = 32, BYTES = 20;
    static DEVICE_MEMBER float value(const u8* block, u32 v) {
        const int code = block[4 + v % 16] >> (v / 16 * 4) & 15;
        return __fadd_rn(__fmul_rn(factor(block), (float)code), factor(block + 2));
    }
};

struct Q8_0 {
    static constexpr u32 LENGTH = 32, BYTES = 34;
    static DEVICE_MEMBER float value(const u8* block, u32 v) { return factor(block) * (float)(signed char)block[2 + v]; }
};

struct Q4K {
    static constexpr u32 LENGTH = 256, BYTES = 144;
    static DEVICE_MEMBER float value(const u8* block, u32 v) {
        const u8 *scales = block + 4, *codes = block + 16;
        const u32 group = v / 32, low = group % 4;
        // Six bits each: of the last four groups, the upper two are above the first four's.
        const u32 scale = group < 4 ? scales[low] & 63 : (scales[low + 8] & 15) | scales[low] >> 6 << 4;
        const u32 least = group < 4 ? scales[low + 4] & 63 : scales[low + 8] >> 4 | scales[low + 4] >> 6 << 4;
        const u32 code = codes[group / 2 * 32 + v % 32] >> (group % 2 * 4) & 15;
        const float d = __fmul_rn(factor(block), (float)scale), m = __fmul_rn(factor(block + 2), (float)least);
        return __fsub_rn(__fmul_rn(d, (float)code), m);
    }
};

struct Q6K {
    static constexpr u32 LENGTH = 256, BYTES = 210;
    static DEVICE_MEMBER float value(const u8* block, u32 v) {
        const u8 *low = block, *high = block + 128;
        const u32 upper = v / 128, quarter = v % 128 / 32, l = v % 32;
        const int code = (low[upper * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15) |
                         (high[upper * 32 + l] >> (quarter * 2) & 3) << 4;
        const signed char scale = (signed char)block[192 + upper * 8 + quarter * 2 + l / 16];
        const float d = __fmul_rn(factor(block + 208), (float)scale);
        return d * (float)(code - 32);
    }
};

template <class Format> DEVICE void widen(const u8* blocks, T* out, u64 at, u64 n) {
    if (at >= n) return;
    const u8* block = blocks + at / Format::LENGTH * Format::BYTES;
    Pack values;
#pragma unroll
    for (u32 j = 0; j < PACK; j++) values.v[j] = Format::value(block, at % Format::LENGTH + j);
    store(out, at, n, values);
}

// n values of whole blocks.
KERNEL(q4_0, IN(u8, blocks), OUT(T, out), NUMBER(u64, n)) { widen<Q4_0>(blocks, out, FIRST_VALUE, n); }
KERNEL(q4_1, IN(u8, blocks), OUT(T, out), NUMBER(u64, n)) { widen<Q4_1>(blocks, out, FIRST_VALUE, n); }
KERNEL(q8_0, IN(u8, blocks), OUT(T, out), NUMBER(u64, n)) { widen<Q8_0>(blocks, out, FIRST_VALUE, n); }
KERNEL(q4_k, IN(u8, blocks), OUT(T, out), NUMBER(u64, n)) { widen<Q4K>(blocks, out, FIRST_VALUE, n); }
KERNEL(q6_k, IN(u8, blocks), OUT(T, out), NUMBER(u64, n)) { widen<Q6K>(blocks, out, FIRST_VALUE, n); }
