// Maps of values, PACK of them for each thread: rotation, gates, dropout, soft-cap, sums. The formulas are in the files of
// src/ops/ that launch them.
#include "common.cuh"

// PACK pairs: their first values and their second, or the same 2 PACK values as they lie side by side.
struct Pairs {
    Pack a, b;
};

// Pairs of neighbours, to their first values and their second.
DEVICE Pairs parted(Pairs x) {
    Pairs y;
#pragma unroll
    for (u32 i = 0; i < PACK / 2; i++) {
        y.a.v[i] = x.a.v[2 * i];
        y.b.v[i] = x.a.v[2 * i + 1];
        y.a.v[PACK / 2 + i] = x.b.v[2 * i];
        y.b.v[PACK / 2 + i] = x.b.v[2 * i + 1];
    }
    return y;
}

// The way back.
DEVICE Pairs side_by_side(Pairs x) {
    Pairs y;
#pragma unroll
    for (u32 i = 0; i < PACK / 2; i++) {
        y.a.v[2 * i] = x.a.v[i];
        y.a.v[2 * i + 1] = x.b.v[i];
        y.b.v[2 * i] = x.a.v[PACK / 2 + i];
        y.b.v[2 * i + 1] = x.b.v[PACK / 2 + i];
    }
    return y;
}

// Rotates the first 2 * turns values of every head by the angles of its row, and copies the others; x, y: [N, H * head_dim],
// cos, sin: [N, turns] of f32. Pairs are the halves of what is rotated or, if `neighbours` is 1, neighbours. `sign` is 1, or -1
// for the inverse. `width` is H * head_dim, `chunks` turns / PACK plus what is left of a head / PACK, both rounded up, and
// `places` N * H * chunks.
KERNEL(rope, IN(T, x), IN(float, cosines), IN(float, sines), OUT(T, y), NUMBER(u32, width), NUMBER(u32, head_dim),
       NUMBER(u32, turns), NUMBER(u32, neighbours), NUMBER(u32, chunks), NUMBER(float, sign), NUMBER(u64, places)) {
    const u64 place = (u64)BLOCK_X * THREADS + THREAD;
    if (place >= places) return;
    const u64 row = place / (width / head_dim * chunks);
    const u64 first = place / chunks * head_dim;
    const u32 chunk = place % chunks, turning = (turns + PACK - 1) / PACK;
    if (chunk >= turning) {
        const u32 at = 2 * turns + (chunk - turning) * PACK;
        store(y + first, at, head_dim, load(x + first, at, head_dim));
        return;
    }
    const u32 at = chunk * PACK;
    // Where the two packs begin, and where the first may end.
    const u32 left = neighbours ? 2 * at : at, right = neighbours ? left + PACK : left + turns;
    const u32 end = neighbours ? 2 * turns : turns;
    const Pairs read = {load(x + first, left, end), load(x + first, right, 2 * turns)};
    const Pairs from = neighbours ? parted(read) : read;
    const Pack c = load(cosines + row * turns, at, turns), s = load(sines + row * turns, at, turns);
    Pairs turned;
#pragma unroll
    for (u32 i = 0; i < PACK; i++) {
        turned.a.v[i] = from.a.v[i] * c.v[i] - from.b.v[i] * (s.v[i] * sign);
        turned.b.v[i] = from.b.v[i] * c.v[i] + from.a.v[i] * (s.v[i] * sign);
    }
    const Pairs out = neighbours ? side_by_side(turned) : turned;
    store(y + first, left, end, out.a);
    store(y + first, right, 2 * turns, out.b);
}

struct Gate {
    float value, slope;
};

// x sigma(u(x)) and its slope, or sigma(x) and its; `kind` is 0 for silu, 1 for GELU's tanh form, 2 for sigma.
DEVICE Gate activation(float x, u32 kind) {
    const float scale = 1.595769121605731f, cubic = 0.044715f;
    const bool gelu = kind == 1;
    const float u = gelu ? scale * (x + cubic * x * x * x) : x;
    const float du = gelu ? scale * (1.f + 3.f * cubic * x * x) : 1.f;
    const float sigma = sigmoid(u), value = x * sigma;
    if (kind == 2) return {sigma, sigma * (1.f - sigma)};
    return {value, sigma + value * (1.f - sigma) * du};
}

KERNEL(gated_mlp_forward, IN(T, gate), IN(T, up), OUT(T, y), NUMBER(u32, kind), NUMBER(u64, n)) {
    const u64 at = FIRST_VALUE;
    if (at >= n) return;
    const Pack g = load(gate, at, n), u = load(up, at, n);
    Pack out;
#pragma unroll
    for (u32 i = 0; i < PACK; i++) out.v[i] = activation(g.v[i], kind).value * u.v[i];
    store(y, at, n, out);
}

KERNEL(gated_mlp_backward, IN(T, gate), IN(T, up), IN(T, dy), OUT(T, d_gate), OUT(T, d_up), NUMBER(u32, kind),
       NUMBER(u64, n)) {
    const u64 at = FIRST_VALUE;
    if (at >= n) return;
    const Pack g = load(gate, at, n), u = load(up, at, n), d = load(dy, at, n);
    Pack dg, du;
#pragma unroll
    for (u32 i = 0; i < PACK; i++) {
        const Gate a = activation(g.v[i], kind);
        du.v[i] = d.v[i] * a.value;
        dg.v[i] = d.v[i] * u.v[i] * a.slope;
    }
    store(d_gate, at, n, dg);
    store(d_up, at, n, du);
}

// 0 or `keep` for value `at`: the mask that src/ops/dropout.rs draws on the host, by SplitMix64's output function.
DEVICE float mask(u64 key, u64 at, u64 threshold, float keep) {
    u64 z = key + at + 0x9e3779b97f4a7c15UL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9UL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebUL;
    z ^= z >> 31;
    return (z >> 32) < threshold ? 0.f : keep;
}

// The values of x at `at` that the mask keeps.
template <class V> DEVICE Pack kept(GLOBAL const V* x, u64 at, u64 key, u64 threshold, float keep, u64 n) {
    Pack v = load(x, at, n);
#pragma unroll
    for (u32 i = 0; i < PACK; i++) v.v[i] *= mask(key, at + i, threshold, keep);
    return v;
}

KERNEL(dropout, IN(T, x), OUT(T, y), NUMBER(u64, key), NUMBER(u64, threshold), NUMBER(float, keep), NUMBER(u64, n)) {
    const u64 at = FIRST_VALUE;
    if (at < n) store(y, at, n, kept(x, at, key, threshold, keep, n));
}

// From T to f32.
KERNEL(dropout_widened, IN(T, x), OUT(float, y), NUMBER(u64, key), NUMBER(u64, threshold), NUMBER(float, keep),
       NUMBER(u64, n)) {
    const u64 at = FIRST_VALUE;
    if (at < n) store(y, at, n, kept(x, at, key, threshold, keep, n));
}

// added + dropout(x), x in f32.
KERNEL(dropout_added, IN(float, x), IN(T, added), OUT(T, y), NUMBER(u64, key), NUMBER(u64, threshold), NUMBER(float, keep),
       NUMBER(u64, n)) {
    const u64 at = FIRST_VALUE;
    if (at >= n) return;
    Pack v = kept(x, at, key, threshold, keep, n);
    const Pack a = load(added, at, n);
#pragma unroll
    for (u32 i = 0; i < PACK; i++) v.v[i] += a.v[i];
    store(y, at, n, v);
}

KERNEL(softcap_forward, IN(T, x), OUT(T, y), NUMBER(float, cap), NUMBER(u64, n)) {
    const u64 at = FIRST_VALUE;
    if (at >= n) return;
    Pack v = load(x, at, n);
#pragma unroll
    for (u32 i = 0; i < PACK; i++) v.v[i] = cap * tanhf(v.v[i] / cap);
    store(y, at, n, v);
}

KERNEL(softcap_backward, IN(T, y), IN(T, dy), OUT(T, dx), NUMBER(float, cap), NUMBER(u64, n)) {
    const u64 at = FIRST_VALUE;
    if (at >= n) return;
    const Pack v = load(y, at, n), g = load(dy, at, n);
    Pack out;
#pragma unroll
    for (u32 i = 0; i < PACK; i++) {
        const float share = v.v[i] / cap;
        out.v[i] = g.v[i] * (1.f - share * share);
    }
    store(dx, at, n, out);
}

// x + y, y in f32.
KERNEL(add_narrowed, IN(T, x), IN(float, y), OUT(T, sum), NUMBER(u64, n)) {
    const u64 at = FIRST_VALUE;
    if (at >= n) return;
    Pack v = load(x, at, n);
    const Pack a = load(y, at, n);
#pragma unroll
    for (u32 i = 0; i < PACK; i++) v.v[i] += a.v[i];
    store(sum, at, n, v);
}
