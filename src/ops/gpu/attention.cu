// Causal grouped-query attention without its T x T scores, after FlashAttention-2 (arXiv 2307.08691). The formulas, and what a
// query sees, are in src/ops/attention.rs. q, o, dq, do: [N, H * D], k, v, dk, dv: [Nk, Hkv * D] of T; the log-sum-exp and
// delta = rowsum(do * o) of every row: [H, N] of f32.
//
// A block owns a tile of `OWN` rows, 16 for each warp, of queries (forward, dq) or of keys (dk and dv), and passes through
// those of the other kind that belong to it, `step` of them at a time. So every sum has one owner and one order.
#include "common.cuh"
#include "fragments.cuh"

// Rows of a tile; src/ops/attention/on_gpu.rs has the same numbers. SIZE is 64, 128 or 256, at least D.
template <class V, u32 SIZE> constexpr u32 OWN = (sizeof(V) == 2 ? 64 : 32) / (SIZE > 128 ? 2 : 1);
// Values between the rows of a tile: no two rows that a warp reads at once begin in the same bank.
template <u32 SIZE> constexpr u32 STRIDE_OF = SIZE + 8;

// Rows of a sequence that a block owns: `rows` of them, of which `row` is the first in its tensor and `place` in the
// sequence. The other kind begins at `other_row` and has `others` rows. A query sees the keys up to its place + `shift`.
struct Tile {
    u32 row, rows, place, other_row, others, shift;
};

struct Heads {
    u32 heads, kv_heads, head_dim, window;
    float scale, cap;

    DEVICE_MEMBER bool sees(u32 query, u32 key, u32 shift) const {
        return key <= query + shift && query + shift < key + window;
    }
    // The score of a product; `cap` is 0 if there is none.
    DEVICE_MEMBER float score(float product) const {
        const float x = product * scale;
        return cap > 0.f ? cap * tanhf(x / cap) : x;
    }
    DEVICE_MEMBER float slope(float score) const {
        const float share = score / cap;
        return cap > 0.f ? 1.f - share * share : 1.f;
    }
};

DEVICE u32 least(u32 a, u32 b) { return a < b ? a : b; }
// a - b, but not below 0.
DEVICE u32 less(u32 a, u32 b) { return a > b ? a - b : 0; }

// Copies `count` rows of one head, whose first value is at `from`, into ROWS of shared memory; the rest becomes 0.
template <u32 ROWS, u32 SIZE> DEVICE void copy(T* to, const T* from, u32 count, u32 row_stride, u32 head_dim) {
    const bool whole = head_dim % PACK == 0 && row_stride % PACK == 0 && aligned(from);
    for (u32 i = threadIdx.x; i < ROWS * (SIZE / PACK); i += blockDim.x) {
        const u32 row = i / (SIZE / PACK), at = i % (SIZE / PACK) * PACK;
        Packed<T> values;
        const T* source = from + (u64)row * row_stride + at;
        if (whole && row < count && at < head_dim) {
            values = *reinterpret_cast<const Packed<T>*>(source);
        } else {
#pragma unroll
            for (u32 j = 0; j < PACK; j++)
                values.v[j] = row < count && at + j < head_dim ? source[j] : rounded<T>(0.f);
        }
        *reinterpret_cast<Packed<T>*>(to + row * STRIDE_OF<SIZE> + at) = values;
    }
}

// c += a bT: 16 rows of a, 8 * TILES of b, summed over head_dim.
template <u32 SIZE, u32 TILES>
DEVICE void product(FragmentC (&c)[TILES], const T* a, const T* b, u32 head_dim) {
#pragma unroll 1
    for (u32 k = 0; k < head_dim; k += 16) {
        const FragmentA<T> left = rows_as_a(a + k, STRIDE_OF<SIZE>);
#pragma unroll
        for (u32 n = 0; n < TILES; n++) multiply(c[n], left, rows_as_b(b + n * 8 * STRIDE_OF<SIZE> + k, STRIDE_OF<SIZE>));
    }
}

// c += weights b: weights [16, 8 * TILES], b 8 * TILES rows of which OUT / 8 tiles of columns are used, `columns` values.
template <u32 SIZE, u32 TILES, u32 OUT>
DEVICE void combine(FragmentC (&c)[OUT], const FragmentC (&weights)[TILES], const T* b, u32 columns) {
#pragma unroll
    for (u32 k = 0; k < TILES; k += 2) {
        const FragmentA<T> left = as_a<T>(weights[k], weights[k + 1]);
#pragma unroll
        for (u32 n = 0; n < OUT; n++) {
            if (n * 8 >= columns) break;
            multiply(c[n], left, columns_as_b(b + k * 8 * STRIDE_OF<SIZE> + n * 8, STRIDE_OF<SIZE>));
        }
    }
}

// Writes this warp's 16 rows of c times `factor` (one for each half of the rows) to the rows below `rows` of one head.
template <u32 OUT>
DEVICE void write(T* to, const FragmentC (&c)[OUT], const float (&factor)[2], u32 rows, u32 row_stride, u32 columns) {
    const u32 first = threadIdx.x / WARP * 16 + lane_row();
#pragma unroll
    for (u32 n = 0; n < OUT; n++) {
#pragma unroll
        for (u32 e = 0; e < 4; e++) {
            const u32 row = first + e / 2 * 8, column = n * 8 + lane_pair() + e % 2;
            if (row < rows && column < columns) narrow(c[n].v[e] * factor[e / 2], to[(u64)row * row_stride + column]);
        }
    }
}

// The sum or maximum over the four lanes that share a row.
template <class Combine> DEVICE float across_row(float x) {
    x = Combine::of(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return Combine::of(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

// Calls `body` with the first of STEP keys at a time, of those that the queries of a tile see: their rows and those of the values
// are in shared memory then.
template <u32 SIZE, u32 STEP, class Body>
DEVICE void over_keys(const T* k, const T* v, T* keys, T* values, const Tile& tile, u32 kv_head, const Heads& h,
                      const Body& body) {
    const u32 kv_width = h.kv_heads * h.head_dim;
    const u32 position = tile.place + tile.shift, end = least(tile.others, position + tile.rows);
    for (u32 first = less(position + 1, h.window); first < end; first += STEP) {
        const u64 from = (u64)(tile.other_row + first) * kv_width + kv_head * h.head_dim;
        const u32 count = least(STEP, tile.others - first);
        __syncthreads();
        copy<STEP, SIZE>(keys, k + from, count, kv_width, h.head_dim);
        copy<STEP, SIZE>(values, v + from, count, kv_width, h.head_dim);
        __syncthreads();
        body(first);
    }
}

template <u32 SIZE>
DEVICE void forward(const T* q, const T* k, const T* v, const Tile* tiles, T* o, float* lse, u32 n, const Heads h) {
    constexpr u32 ROWS = OWN<T, SIZE>, STEP = ROWS, STRIDE = STRIDE_OF<SIZE>;
    DYNAMIC_SHARED(T, queries, (ROWS + 2 * STEP) * STRIDE * sizeof(T));
    T *keys = queries + ROWS * STRIDE, *values = keys + STEP * STRIDE;
    const Tile tile = tiles[gridDim.x - 1 - blockIdx.x];
    const u32 head = blockIdx.y, kv_head = head / (h.heads / h.kv_heads);
    const u32 width = h.heads * h.head_dim, warp_row = threadIdx.x / WARP * 16;
    copy<ROWS, SIZE>(queries, q + (u64)tile.row * width + head * h.head_dim, tile.rows, width, h.head_dim);

    FragmentC out[SIZE / 8] = {};
    float highest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
    over_keys<SIZE, STEP>(k, v, keys, values, tile, kv_head, h, [&](u32 first) {
        FragmentC scores[STEP / 8] = {};
        product<SIZE>(scores, queries + warp_row * STRIDE, keys, h.head_dim);
        float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (u32 i = 0; i < STEP / 8; i++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                const u32 query = tile.place + warp_row + lane_row() + e / 2 * 8;
                const u32 key = first + i * 8 + lane_pair() + e % 2;
                const bool seen = key < tile.others && h.sees(query, key, tile.shift);
                scores[i].v[e] = seen ? h.score(scores[i].v[e]) : -INFINITY;
                top[e / 2] = fmaxf(top[e / 2], scores[i].v[e]);
            }
        }
        float base[2];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const float now = fmaxf(highest[half], across_row<Max>(top[half]));
            // A row that has seen nothing yet.
            base[half] = now == -INFINITY ? 0.f : now;
            const float shrink = expf(highest[half] - base[half]);
            highest[half] = now;
            sum[half] *= shrink;
#pragma unroll
            for (u32 i = 0; i < SIZE / 8; i++) {
                out[i].v[2 * half] *= shrink;
                out[i].v[2 * half + 1] *= shrink;
            }
        }
#pragma unroll
        for (u32 i = 0; i < STEP / 8; i++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                scores[i].v[e] = expf(scores[i].v[e] - base[e / 2]);
                sum[e / 2] += scores[i].v[e];
            }
        }
        combine<SIZE>(out, scores, values, h.head_dim);
    });
    float factor[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        sum[half] = across_row<Add>(sum[half]);
        factor[half] = 1.f / sum[half];
        const u32 row = warp_row + lane_row() + half * 8;
        if (lane_pair() == 0 && row < tile.rows) lse[(u64)head * n + tile.row + row] = highest[half] + logf(sum[half]);
    }
    write(o + (u64)tile.row * width + head * h.head_dim, out, factor, tile.rows, width, h.head_dim);
}

template <u32 SIZE>
DEVICE void backward_queries(const T* q, const T* k, const T* v, const T* d_out, const Tile* tiles, const float* lse,
                             const float* delta, T* dq, u32 n, const Heads h) {
    constexpr u32 ROWS = OWN<T, SIZE>, STEP = ROWS, STRIDE = STRIDE_OF<SIZE>;
    DYNAMIC_SHARED(T, queries, (2 * ROWS + 2 * STEP) * STRIDE * sizeof(T));
    T *gradients = queries + ROWS * STRIDE, *keys = gradients + ROWS * STRIDE, *values = keys + STEP * STRIDE;
    const Tile tile = tiles[gridDim.x - 1 - blockIdx.x];
    const u32 head = blockIdx.y, kv_head = head / (h.heads / h.kv_heads);
    const u32 width = h.heads * h.head_dim, warp_row = threadIdx.x / WARP * 16;
    const u64 start = (u64)tile.row * width + head * h.head_dim;
    copy<ROWS, SIZE>(queries, q + start, tile.rows, width, h.head_dim);
    copy<ROWS, SIZE>(gradients, d_out + start, tile.rows, width, h.head_dim);
    float log_sum[2], inner[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 row = warp_row + lane_row() + half * 8;
        const u64 at = (u64)head * n + tile.row + row;
        // e^(score - INFINITY) = 0 for rows that are not there.
        log_sum[half] = row < tile.rows ? lse[at] : INFINITY;
        inner[half] = row < tile.rows ? delta[at] : 0.f;
    }

    FragmentC out[SIZE / 8] = {};
    over_keys<SIZE, STEP>(k, v, keys, values, tile, kv_head, h, [&](u32 first) {
        FragmentC scores[STEP / 8] = {}, d_weights[STEP / 8] = {};
        product<SIZE>(scores, queries + warp_row * STRIDE, keys, h.head_dim);
        product<SIZE>(d_weights, gradients + warp_row * STRIDE, values, h.head_dim);
#pragma unroll
        for (u32 i = 0; i < STEP / 8; i++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                const u32 query = tile.place + warp_row + lane_row() + e / 2 * 8;
                const u32 key = first + i * 8 + lane_pair() + e % 2;
                const float score = h.score(scores[i].v[e]);
                const bool seen = key < tile.others && h.sees(query, key, tile.shift);
                const float weight = seen ? expf(score - log_sum[e / 2]) : 0.f;
                scores[i].v[e] = weight * (d_weights[i].v[e] - inner[e / 2]) * h.slope(score);
            }
        }
        combine<SIZE>(out, scores, keys, h.head_dim);
    });
    const float factor[2] = {h.scale, h.scale};
    write(dq + start, out, factor, tile.rows, width, h.head_dim);
}

// Columns from blockIdx.z * OUT on: with all 256 of them, dk and dv would not fit into a warp's registers.
template <u32 SIZE>
DEVICE void backward_keys(const T* q, const T* k, const T* v, const T* d_out, const Tile* tiles, const float* lse,
                          const float* delta, T* dk, T* dv, u32 n, const Heads h) {
    constexpr u32 ROWS = OWN<T, SIZE>, STEP = ROWS > 32 ? 32 : ROWS, STRIDE = STRIDE_OF<SIZE>;
    constexpr u32 OUT = SIZE > 128 ? 128 : SIZE;
    DYNAMIC_SHARED(T, keys, (2 * ROWS + 2 * STEP) * STRIDE * sizeof(T) + 2 * STEP * sizeof(float));
    T *values = keys + ROWS * STRIDE, *queries = values + ROWS * STRIDE, *gradients = queries + STEP * STRIDE;
    float *log_sum = reinterpret_cast<float*>(gradients + STEP * STRIDE), *inner = log_sum + STEP;
    const Tile tile = tiles[blockIdx.x];
    const u32 kv_head = blockIdx.y, group = h.heads / h.kv_heads, column = blockIdx.z * OUT;
    const u32 width = h.heads * h.head_dim, kv_width = h.kv_heads * h.head_dim;
    const u32 warp_row = threadIdx.x / WARP * 16, columns = less(h.head_dim, column);
    const u64 start = (u64)tile.row * kv_width + kv_head * h.head_dim;
    copy<ROWS, SIZE>(keys, k + start, tile.rows, kv_width, h.head_dim);
    copy<ROWS, SIZE>(values, v + start, tile.rows, kv_width, h.head_dim);

    FragmentC out_k[OUT / 8] = {}, out_v[OUT / 8] = {};
    // Queries that see one of the keys.
    const u32 begin = less(tile.place, tile.shift);
    const u32 end = least(tile.others, less(tile.place + tile.rows - 1 + h.window, tile.shift));
    for (u32 head = kv_head * group; head < (kv_head + 1) * group; head++) {
        for (u32 first = begin; first < end; first += STEP) {
            const u32 row = tile.other_row + first, count = least(STEP, tile.others - first);
            const u64 from = (u64)row * width + head * h.head_dim;
            __syncthreads();
            copy<STEP, SIZE>(queries, q + from, count, width, h.head_dim);
            copy<STEP, SIZE>(gradients, d_out + from, count, width, h.head_dim);
            for (u32 i = threadIdx.x; i < STEP; i += blockDim.x) {
                log_sum[i] = i < count ? lse[(u64)head * n + row + i] : INFINITY;
                inner[i] = i < count ? delta[(u64)head * n + row + i] : 0.f;
            }
            __syncthreads();
            // Transposed: keys by queries.
            FragmentC weights[STEP / 8] = {}, d_scores[STEP / 8] = {};
            product<SIZE>(weights, keys + warp_row * STRIDE, queries, h.head_dim);
            product<SIZE>(d_scores, values + warp_row * STRIDE, gradients, h.head_dim);
#pragma unroll
            for (u32 i = 0; i < STEP / 8; i++) {
#pragma unroll
                for (u32 e = 0; e < 4; e++) {
                    const u32 at = i * 8 + lane_pair() + e % 2, query = first + at;
                    const u32 key = tile.place + warp_row + lane_row() + e / 2 * 8;
                    const float score = h.score(weights[i].v[e]);
                    weights[i].v[e] = h.sees(query, key, tile.shift) ? expf(score - log_sum[at]) : 0.f;
                    d_scores[i].v[e] = weights[i].v[e] * (d_scores[i].v[e] - inner[at]) * h.slope(score);
                }
            }
            combine<SIZE>(out_v, weights, gradients + column, columns);
            combine<SIZE>(out_k, d_scores, queries + column, columns);
        }
    }
    const float factor_k[2] = {h.scale, h.scale}, factor_v[2] = {1.f, 1.f};
    write(dk + start + column, out_k, factor_k, tile.rows, kv_width, columns);
    write(dv + start + column, out_v, factor_v, tile.rows, kv_width, columns);
}

#define ENTRIES(SIZE)                                                                                                   \
    KERNEL(attention_forward_##SIZE, const T* q, const T* k, const T* v, const u32* tiles, T* o, float* lse, u32 n,     \
           u32 heads, u32 kv_heads, u32 head_dim, u32 window, float scale, float cap) {                                 \
        const Heads h = {heads, kv_heads, head_dim, window, scale, cap};                                                \
        forward<SIZE>(q, k, v, reinterpret_cast<const Tile*>(tiles), o, lse, n, h);                                     \
    }                                                                                                                   \
    KERNEL(attention_backward_queries_##SIZE, const T* q, const T* k, const T* v, const T* d_out, const u32* tiles,     \
           const float* lse, const float* delta, T* dq, u32 n, u32 heads, u32 kv_heads, u32 head_dim, u32 window,       \
           float scale, float cap) {                                                                                    \
        const Heads h = {heads, kv_heads, head_dim, window, scale, cap};                                                \
        backward_queries<SIZE>(q, k, v, d_out, reinterpret_cast<const Tile*>(tiles), lse, delta, dq, n, h);             \
    }                                                                                                                   \
    KERNEL(attention_backward_keys_##SIZE, const T* q, const T* k, const T* v, const T* d_out, const u32* tiles,        \
           const float* lse, const float* delta, T* dk, T* dv, u32 n, u32 heads, u32 kv_heads, u32 head_dim,            \
           u32 window, float scale, float cap) {                                                                        \
        const Heads h = {heads, kv_heads, head_dim, window, scale, cap};                                                \
        backward_keys<SIZE>(q, k, v, d_out, reinterpret_cast<const Tile*>(tiles), lse, delta, dk, dv, n, h);            \
    }
ENTRIES(64)
ENTRIES(128)
ENTRIES(256)

// rowsum(do * o) of every head, a warp for each; `rows` = N * H of head_dim values. delta: [H, N].
KERNEL(attention_delta, const T* o, const T* d_out, float* delta, u32 n, u32 heads, u32 head_dim) {
    const u64 place = ((u64)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    const bool there = place < (u64)n * heads;
    float sum = 0.f;
    for (u32 i = threadIdx.x % WARP; there && i < head_dim; i += WARP)
        sum += wide(o[place * head_dim + i]) * wide(d_out[place * head_dim + i]);
    sum = across_warp<Add>(sum);
    if (there && threadIdx.x % WARP == 0) delta[place % heads * n + place / heads] = sum;
}
