// The losses of rows of logits [m, V] in f32, and their gradients in T: with x the capped logits, loss = log sum e^x - x[target],
// gradient = scale (softmax(x) - onehot) times the cap's slope. One block a row, which is read twice. The formulas are in
// src/ops/cross_entropy.rs.
#include "common.cuh"

DEVICE float capped(float x, float cap) { return cap > 0.f ? cap * tanhf(x / cap) : x; }

// `cap` is 0 if there is none, `gradients` null if none are wanted; they may be in the place of the logits.
KERNEL(cross_entropy, IN(float, logits), IN(u32, targets), OUT(float, losses), MAYBE_OUT(T, gradients), NUMBER(u32, vocab),
       NUMBER(float, scale), NUMBER(float, cap)) {
    PARTIAL;
    GLOBAL const float* row = logits + (u64)BLOCK_X * vocab;
    // The largest value so far, and the sum of e^(x - largest).
    float largest = -INFINITY, sum = 0.f;
    for (u32 at = THREAD * PACK; at < vocab; at += THREADS * PACK) {
        const Pack v = load(row, at, vocab);
        float x[PACK], top = largest;
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            x[i] = at + i < vocab ? capped(v.v[i], cap) : -INFINITY;
            top = fmaxf(top, x[i]);
        }
        // As long as all are -inf, nothing is to be added.
        const float base = top == -INFINITY ? 0.f : top;
        sum *= expf(largest - base);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) sum += expf(x[i] - base);
        largest = top;
    }
    const float highest = across_block<Max>(largest, -INFINITY, partial, THREAD, THREADS);
    sum = largest == -INFINITY ? 0.f : sum * expf(largest - highest);
    const float total = across_block<Add>(sum, 0.f, partial, THREAD, THREADS);
    const u32 target = targets[BLOCK_X];
    // No loss is a number if its target is none of the vocabulary.
    if (THREAD == 0)
        losses[BLOCK_X] = target < vocab ? logf(total) + highest - capped(row[target], cap) : NAN;
    if (!GIVEN(gradients)) return;
    GLOBAL T* out = gradients + (u64)BLOCK_X * vocab;
    // The target's logit has been read before another thread replaces it.
    BARRIER;
    const float share = scale / total;
    for (u32 at = THREAD * PACK; at < vocab; at += THREADS * PACK) {
        Pack v = load(row, at, vocab);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            const float x = capped(v.v[i], cap), part = x / cap;
            const float gradient = expf(x - highest) * share - (at + i == target ? scale : 0.f);
            v.v[i] = cap > 0.f ? gradient * (1.f - part * part) : gradient;
        }
        store(out, at, vocab, v);
    }
}
