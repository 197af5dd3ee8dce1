// All trained parameters in one launch: AdamW's step, and the squares of their gradients. A block has CHUNK values of one
// parameter, which its row of `chunks` names: its number, and that of the chunk. Everything is f32; the formulas are in
// src/optim/adamw.rs.
#include "common.cuh"

// src/ops/parameters.rs has the same number.
constexpr u32 CHUNK = 4096;

// Addresses and number of values of a parameter.
struct Parameter {
    float *theta, *m, *v;
    const float* gradient;
    u64 n;
};

// `rest` is 1 - beta.
KERNEL(adamw, const u64* parameters, const float* rates, const u32* chunks, float beta1, float rest1, float beta2,
       float rest2, float scale, float root, float epsilon) {
    const u32 number = chunks[2 * blockIdx.x];
    const Parameter p = reinterpret_cast<const Parameter*>(parameters)[number];
    // The learning rate over the first moment's bias, and what weight decay leaves.
    const float rate = rates[2 * number], keep = rates[2 * number + 1];
    const u64 first = (u64)chunks[2 * blockIdx.x + 1] * CHUNK, end = first + CHUNK < p.n ? first + CHUNK : p.n;
    for (u64 at = first + threadIdx.x * PACK; at < end; at += blockDim.x * PACK) {
        const Pack gradient = load(p.gradient, at, end);
        Pack theta = load(p.theta, at, end), m = load(p.m, at, end), v = load(p.v, at, end);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            const float g = gradient.v[i] * scale;
            m.v[i] = beta1 * m.v[i] + rest1 * g;
            v.v[i] = beta2 * v.v[i] + rest2 * (g * g);
            theta.v[i] = keep * theta.v[i] - rate * m.v[i] / (sqrtf(v.v[i]) / root + epsilon);
        }
        store(p.theta, at, end, theta);
        store(p.m, at, end, m);
        store(p.v, at, end, v);
    }
}

// The sum of squares of every chunk: [chunks] of f32. Only the gradients' addresses are read.
KERNEL(squares, const u64* parameters, const u32* chunks, float* sums) {
    PARTIAL;
    const Parameter p = reinterpret_cast<const Parameter*>(parameters)[chunks[2 * blockIdx.x]];
    const u64 first = (u64)chunks[2 * blockIdx.x + 1] * CHUNK, end = first + CHUNK < p.n ? first + CHUNK : p.n;
    float sum = 0.f;
    for (u64 at = first + threadIdx.x * PACK; at < end; at += blockDim.x * PACK) {
        const Pack g = load(p.gradient, at, end);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) sum += g.v[i] * g.v[i];
    }
    sum = across_block<Add>(sum, 0.f, partial, THREAD, THREADS);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
