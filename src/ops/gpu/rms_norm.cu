// RMSNorm: y = w x s, s = (mean(x^2) + eps)^(-1/2) per row; x, y: [N, d] of T, w: [d] of f32, s: [N] of f32. One block a row.
// The formulas are in src/ops/rms_norm.rs.
#include "common.cuh"

// With `added`, x + added takes the place of x and is written to `sum`.
KERNEL(rms_norm_forward, const T* x, const T* added, const float* w, T* sum, T* y, float* s, u32 d, float eps) {
    const u64 row = (u64)blockIdx.x * d, end = row + d;
    float squares = 0.f;
    for (u64 at = row + threadIdx.x * PACK; at < end; at += blockDim.x * PACK) {
        Pack v = load(x, at, end);
        if (added) {
            const Pack a = load(added, at, end);
#pragma unroll
            // As it is stored: the row is read again below, and once more in the backward pass.
            for (u32 i = 0; i < PACK; i++) v.v[i] = wide(rounded<T>(v.v[i] + a.v[i]));
            store(sum, at, end, v);
        }
#pragma unroll
        for (u32 i = 0; i < PACK; i++) squares += v.v[i] * v.v[i];
    }
    squares = across_block<Add>(squares, 0.f);
    const float scale = 1.f / sqrtf(squares / d + eps);
    if (threadIdx.x == 0) s[blockIdx.x] = scale;
    const T* input = added ? sum : x;
    for (u32 at = threadIdx.x * PACK; at < d; at += blockDim.x * PACK) {
        Pack v = load(input, row + at, end);
        const Pack weight = load(w, at, d);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) v.v[i] = v.v[i] * scale * weight.v[i];
        store(y, row + at, end, v);
    }
}

// dx = s z - x s^3 <z, x> / d, z = w dy; with `added`, plus that.
KERNEL(rms_norm_backward, const T* x, const float* s, const float* w, const T* dy, const T* added, T* dx, u32 d) {
    const u64 row = (u64)blockIdx.x * d, end = row + d;
    float inner = 0.f;
    for (u32 at = threadIdx.x * PACK; at < d; at += blockDim.x * PACK) {
        const Pack v = load(x, row + at, end), g = load(dy, row + at, end), weight = load(w, at, d);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) inner += v.v[i] * (g.v[i] * weight.v[i]);
    }
    inner = across_block<Add>(inner, 0.f);
    const float scale = s[blockIdx.x], pull = inner / d * scale * scale * scale;
    for (u32 at = threadIdx.x * PACK; at < d; at += blockDim.x * PACK) {
        const Pack v = load(x, row + at, end), g = load(dy, row + at, end), weight = load(w, at, d);
        Pack out;
#pragma unroll
        for (u32 i = 0; i < PACK; i++) out.v[i] = g.v[i] * weight.v[i] * scale - v.v[i] * pull;
        if (added) {
            const Pack a = load(added, row + at, end);
#pragma unroll
            for (u32 i = 0; i < PACK; i++) out.v[i] += a.v[i];
        }
        store(dx, row + at, end, out);
    }
}

// dw = sum over rows of dy x s, in parts: [gridDim.y, d] of f32. A thread has PACK columns and every gridDim.y-th row.
KERNEL(rms_norm_backward_weight, const T* x, const float* s, const T* dy, float* parts, u32 n, u32 d) {
    const u64 at = first_value();
    if (at >= d) return;
    Pack sums = {};
    for (u64 row = blockIdx.y; row < n; row += gridDim.y) {
        const Pack v = load(x + row * d, at, d), g = load(dy + row * d, at, d);
        const float scale = s[row];
#pragma unroll
        for (u32 i = 0; i < PACK; i++) sums.v[i] += g.v[i] * (v.v[i] * scale);
    }
    store(parts + (u64)blockIdx.y * d, at, d, sums);
}
