// From codes of four bits to the type of a product. The format is in src/quant/four_bit: the same operations in the same order, so
// that in f32 the bits are the CPU's.
#include "common.cuh"

// The values of a byte's two codes, its scale from a table of its own or, if `plain` is not there, from a byte: value
// `at` has scale `at / block`, and scale i is codebook[codes[i]] * absmax[i / scale_block] + offset. `rounding` is 1 for
// values that are rounded to bf16, 2 for f16, else 0. `block` is a multiple of PACK.
KERNEL(four_bit, IN(u8, bytes), IN(float, pairs), MAYBE_IN(float, plain), MAYBE_IN(u8, codes), MAYBE_IN(float, codebook),
       MAYBE_IN(float, absmax), OUT(T, out), NUMBER(u32, block), NUMBER(u32, scale_block), NUMBER(float, offset),
       NUMBER(u32, rounding), NUMBER(u64, n)) {
    const u64 at = FIRST_VALUE;
    if (at >= n) return;
    const u64 i = at / block;
    const float scale =
        GIVEN(plain) ? plain[i] : __fadd_rn(__fmul_rn(codebook[codes[i]], absmax[i / scale_block]), offset);
    Pack values;
#pragma unroll
    for (u32 j = 0; j < PACK; j++) {
        const u64 pair = at + j < n ? bytes[(at + j) / 2] : 0;
        float value = pairs[2 * pair + j % 2] * scale;
        if (rounding == 1) value = wide(rounded<Bfloat>(value));
        if (rounding == 2) value = wide(rounded<Half>(value));
        values.v[j] = value;
    }
    store(out, at, n, values);
}
