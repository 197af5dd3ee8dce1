// RMSNorm: y = w x s, s = (mean(x^2) + eps)^(-1/2) per row; x, y: [N, d] of T, w: [d] of f32, s: [N] of f32. One block a row.
// The formulas are in src/ops/rms_norm.rs.
#include "common.cuh"

// With `added`, x + added takes the place of x and is written to `sum`.
KERNEL(rms_norm_forward, IN(T, x), MAYBE_IN(T, added), IN(float, w), MAYBE_OUT(T, sum), OUT(T, y), OUT(float, s),
       NUMBER(u32, d), NUMBER(float, eps)) {
    PARTIAL;
    const u64 row = (u64)BLOCK_X * d, end = row + d;
    float squares = 0.f;
    for (u64 at = row + THREAD * PACK; at < end; at += THREADS * PACK) {
        Pack v = load(x, at, end);
        if (GIVEN(added)) {
            const Pack a = load(added, at, end);
#pragma unroll
            // As it is stored: the row is read again below, and once more in the backward pass.
            for (u32 i = 0; i < PACK; i++) v.v[i] = wide(rounded<T>(v.v[i] + a.v[i]));
            store(sum, at, end, v);
        }
#pragma unroll
        for (u32 i = 0; i < PACK; i++) squares += v.v[i] * v.v[i];
    }
    squares = across_block<Add>(squares, 0.f, partial, THREAD, THREADS);
    const float scale = 1.f / sqrtf(squares / d + eps);
    if (THREAD == 0) s[BLOCK_X] = scale;
    GLOBAL const T* input = x;
    if (GIVEN(added)) input = sum;
    for (u32 at = THREAD * PACK; at < d; at += THREADS * PACK) {
        Pack v = load(input, row + at, end);
        const Pack weight = load(w, at, d);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) v.v[i] = v.v[i] * scale * weight.v[i];
        store(y, row + at, end, v);
    }
}

// dx = s z - x s^3 <z, x> / d, z = w dy; with `added`, plus that.
KERNEL(rms_norm_backward, IN(T, x), IN(float, s), IN(float, w), IN(T, dy), MAYBE_IN(T, added), OUT(T, dx), NUMBER(u32, d)) {
    PARTIAL;
    const u64 row = (u64)BLOCK_X * d, end = row + d;
    float inner = 0.f;
    for (u32 at = THREAD * PACK; at < d; at += THREADS * PACK) {
        const Pack v = load(x, row + at, end), g = load(dy, row + at, end), weight = load(w, at, d);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) inner += v.v[i] * (g.v[i] * weight.v[i]);
    }
    inner = across_block<Add>(inner, 0.f, partial, THREAD, THREADS);
    const float scale = s[BLOCK_X], pull = inner / d * scale * scale * scale;
    for (u32 at = THREAD * PACK; at < d; at += THREADS * PACK) {
        const Pack v = load(x, row + at, end), g = load(dy, row + at, end), weight = load(w, at, d);
        Pack out;
#pragma unroll
        for (u32 i = 0; i < PACK; i++) out.v[i] = g.v[i] * weight.v[i] * scale - v.v[i] * pull;
        if (GIVEN(added)) {
            const Pack a = load(added, row + at, end);
#pragma unroll
            for (u32 i = 0; i < PACK; i++) out.v[i] += a.v[i];
        }
        store(dx, row + at, end, out);
    }
}

// dw = sum over rows of dy x s, in parts: [BLOCKS_Y, d] of f32. A thread has PACK columns and every BLOCKS_Y-th row.
KERNEL(rms_norm_backward_weight, IN(T, x), IN(float, s), IN(T, dy), OUT(float, parts), NUMBER(u32, n), NUMBER(u32, d)) {
    const u64 at = FIRST_VALUE;
    if (at >= d) return;
    Pack sums = {};
    for (u64 row = BLOCK_Y; row < n; row += BLOCKS_Y) {
        const Pack v = load(x + row * d, at, d), g = load(dy + row * d, at, d);
        const float scale = s[row];
#pragma unroll
        for (u32 i = 0; i < PACK; i++) sums.v[i] += g.v[i] * (v.v[i] * scale);
    }
    store(parts + (u64)BLOCK_Y * d, at, d, sums);
}
