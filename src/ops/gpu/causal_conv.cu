// Depthwise causal convolution over each sequence, then silu: p_t = sum over j of w_j x_(t - K + 1 + j), y = p sigma(p); x, y: [N, C] of
// T, w: [C, K] of f32. `near` has for each row how many rows of its sequence are before it, in its lower half, and after it, in its
// upper; none beyond K - 1. A thread has PACK channels of a row: `chunks` are C / PACK, rounded up, and `places` N times that.
// The formulas are in src/ops/causal_conv.rs.
#include "common.cuh"

// p of PACK channels of a row.
DEVICE Pack convolved(GLOBAL const T* x, GLOBAL const float* w, u64 row, u32 at, u32 channels, u32 width, u32 before) {
    Pack p = {};
    for (u32 j = before + 1 < width ? width - 1 - before : 0; j < width; j++) {
        const Pack v = load(x + (row + j + 1 - width) * channels, at, channels);
#pragma unroll
        for (u32 i = 0; i < PACK; i++)
            if (at + i < channels) p.v[i] += w[(at + i) * width + j] * v.v[i];
    }
    return p;
}

KERNEL(causal_conv_forward, IN(T, x), IN(float, w), IN(u32, near), OUT(T, y), NUMBER(u32, channels), NUMBER(u32, width),
       NUMBER(u32, chunks), NUMBER(u64, places)) {
    const u64 place = (u64)BLOCK_X * THREADS + THREAD;
    if (place >= places) return;
    const u64 row = place / chunks;
    const u32 at = (u32)(place % chunks) * PACK;
    Pack p = convolved(x, w, row, at, channels, width, near[row] & 0xffffu);
#pragma unroll
    for (u32 i = 0; i < PACK; i++) p.v[i] *= sigmoid(p.v[i]);
    store(y + row * channels, at, channels, p);
}

// dp = dy times silu's slope at p, in f32.
KERNEL(causal_conv_slopes, IN(T, x), IN(float, w), IN(u32, near), IN(T, dy), OUT(float, dp), NUMBER(u32, channels),
       NUMBER(u32, width), NUMBER(u32, chunks), NUMBER(u64, places)) {
    const u64 place = (u64)BLOCK_X * THREADS + THREAD;
    if (place >= places) return;
    const u64 row = place / chunks;
    const u32 at = (u32)(place % chunks) * PACK;
    Pack p = convolved(x, w, row, at, channels, width, near[row] & 0xffffu);
    const Pack g = load(dy + row * channels, at, channels);
#pragma unroll
    for (u32 i = 0; i < PACK; i++) {
        const float sigma = sigmoid(p.v[i]);
        p.v[i] = g.v[i] * (sigma + p.v[i] * sigma * (1.f - sigma));
    }
    store(dp + row * channels, at, channels, p);
}

// dx_t = sum over j of w_j dp_(t + K - 1 - j).
KERNEL(causal_conv_backward, IN(float, dp), IN(float, w), IN(u32, near), OUT(T, dx), NUMBER(u32, channels),
       NUMBER(u32, width), NUMBER(u32, chunks), NUMBER(u64, places)) {
    const u64 place = (u64)BLOCK_X * THREADS + THREAD;
    if (place >= places) return;
    const u64 row = place / chunks;
    const u32 at = (u32)(place % chunks) * PACK, after = near[row] >> 16;
    Pack sums = {};
    for (u32 j = after + 1 < width ? width - 1 - after : 0; j < width; j++) {
        const Pack v = load(dp + (row + width - 1 - j) * channels, at, channels);
#pragma unroll
        for (u32 i = 0; i < PACK; i++)
            if (at + i < channels) sums.v[i] += w[(at + i) * width + j] * v.v[i];
    }
    store(dx + row * channels, at, channels, sums);
}

// dw_j = sum over rows of dp_t x_(t - K + 1 + j), in parts: [BLOCKS_Y, K, C] of f32. A thread has PACK channels and every
// BLOCKS_Y-th row.
KERNEL(causal_conv_backward_weight, IN(T, x), IN(float, dp), IN(u32, near), OUT(float, parts), NUMBER(u32, n),
       NUMBER(u32, channels), NUMBER(u32, width)) {
    const u64 at = FIRST_VALUE;
    if (at >= channels) return;
    for (u32 j = 0; j < width; j++) {
        Pack sums = {};
        for (u64 row = BLOCK_Y; row < n; row += BLOCKS_Y) {
            if ((near[row] & 0xffffu) + j + 1 < width) continue;
            const Pack v = load(x + (row + j + 1 - width) * channels, at, channels);
            const Pack g = load(dp + row * channels, at, channels);
#pragma unroll
            for (u32 i = 0; i < PACK; i++) sums.v[i] += g.v[i] * v.v[i];
        }
        store(parts + ((u64)BLOCK_Y * width + j) * channels, at, channels, sums);
    }
}
