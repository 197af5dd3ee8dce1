// The penalty of all modules in few launches: what is small in it, beside the products with U, which are cuBLAS's. The formulas
// are in src/method/penalty.rs, the order of launches in src/ops/low_rank/grouped.rs. Values are f32, products and sums f64.
#include "common.cuh"

// Numbers of a module: `Row` in src/ops/low_rank/grouped.rs.
struct Penalised {
    // A [r, d_in], B [d_out, r]; y = UᵀB [k, r], c [k], (c y, c' y) [k, 2 r], and U times that, [d_out, 2 r]; no U: null.
    const float *a, *b, *y, *c;
    float* both;
    const float* z;
    // What the penalty's gradients are added to.
    float *grad_a, *grad_b;
    u64 rank, d_in, d_out, k;
    // The first of its blocks, and how many are A's; B's follow.
    u64 first, of_a, of_b;
    double weight;
};

DEVICE const Penalised& module_of(const u64* modules, u32 number) {
    return reinterpret_cast<const Penalised*>(modules)[number];
}

// The images G (half 0) and H (half 1) of B: `keep` B + `sign` U(...), at a row and column.
DEVICE float image(const Penalised& m, float keep, float sign, u64 row, u32 column, u32 half) {
    const float whole = keep == 0.f ? 0.f : m.b[row * m.rank + column];
    return m.z == nullptr ? whole : whole + sign * m.z[(2 * row + half) * m.rank + column];
}

// (c y, c' y): c' is c² if U's part itself is penalised, else 2 c - c². A block has WEIGHED values of y: (module, chunk).
constexpr u32 WEIGHED = 1024;

KERNEL(penalty_weights, const u64* modules, const u32* chunks, u32 aligned) {
    const Penalised m = module_of(modules, chunks[2 * blockIdx.x]);
    const u64 first = (u64)chunks[2 * blockIdx.x + 1] * WEIGHED, n = m.k * m.rank, end = first + WEIGHED < n ? first + WEIGHED : n;
    for (u64 at = first + threadIdx.x; at < end; at += blockDim.x) {
        const u64 row = at / m.rank, place = (2 * row) * m.rank + at % m.rank;
        const float c = m.c[row], y = m.y[at];
        m.both[place] = c * y;
        m.both[place + m.rank] = (aligned ? c * c : 2.f * c - c * c) * y;
    }
}

// Sums of a block's columns of A, or rows of G: its part of A Aᵀ or GᵀG, in `parts` [blocks, most, most]. A block is
// (module, 0 for A and 1 for B, number of its `chunk` columns or rows).
KERNEL(penalty_sums, const u64* modules, const u32* blocks, double* parts, u32 most, u32 chunk, float keep, float sign) {
    const u32* block = blocks + 3 * blockIdx.x;
    const Penalised m = module_of(modules, block[0]);
    const u64 n = block[1] ? m.d_out : m.d_in, first = (u64)block[2] * chunk, end = first + chunk < n ? first + chunk : n;
    double* part = parts + (u64)blockIdx.x * most * most;
    const u32 rank = (u32)m.rank;
    for (u32 pair = threadIdx.x; pair < rank * rank; pair += blockDim.x) {
        const u32 i = pair / rank, l = pair % rank;
        if (l > i) continue;
        double sum = 0.0;
        if (block[1]) {
            for (u64 row = first; row < end; row++)
                sum += (double)image(m, keep, sign, row, i, 0) * (double)image(m, keep, sign, row, l, 0);
        } else {
            for (u64 at = first; at < end; at++) sum += (double)m.a[i * n + at] * (double)m.a[l * n + at];
        }
        part[i * rank + l] = sum;
        part[l * rank + i] = sum;
    }
}

constexpr u32 MOST_THREADS = 256;

// S = A Aᵀ and T = GᵀG of each module from their parts: `sums` [modules, 2, most, most]; its weight times <T, S>.
KERNEL(penalty_values, const u64* modules, const double* parts, double* sums, double* values, u32 most) {
    const Penalised m = module_of(modules, blockIdx.x);
    const u64 size = (u64)most * most;
    double* s = sums + 2 * blockIdx.x * size;
    double mine = 0.0;
    for (u64 pair = threadIdx.x; pair < m.rank * m.rank; pair += blockDim.x) {
        double of_a = 0.0, of_b = 0.0;
        for (u64 i = 0; i < m.of_a; i++) of_a += parts[(m.first + i) * size + pair];
        for (u64 i = 0; i < m.of_b; i++) of_b += parts[(m.first + m.of_a + i) * size + pair];
        s[pair] = of_a;
        s[size + pair] = of_b;
        mine += of_a * of_b;
    }
    __shared__ double partial[MOST_THREADS];
    partial[threadIdx.x] = mine;
    __syncthreads();
    if (threadIdx.x == 0) {
        double sum = 0.0;
        for (u32 i = 0; i < blockDim.x; i++) sum += partial[i];
        values[blockIdx.x] = m.weight * sum;
    }
}

// Adds 2 weight T A and 2 weight H S to the gradients of A and B, in blocks as above.
KERNEL(penalty_gradients, const u64* modules, const u32* blocks, const double* sums, u32 most, u32 chunk, float keep, float sign) {
    const u32* block = blocks + 3 * blockIdx.x;
    const Penalised m = module_of(modules, block[0]);
    const u64 n = block[1] ? m.d_out : m.d_in, first = (u64)block[2] * chunk, end = first + chunk < n ? first + chunk : n;
    const double* s = sums + 2 * (u64)block[0] * most * most;
    const double *t = s + (u64)most * most, factor = 2.0 * m.weight;
    const u32 rank = (u32)m.rank;
    if (block[1]) {
        for (u64 at = first * rank + threadIdx.x; at < end * rank; at += blockDim.x) {
            const u64 row = at / rank, column = at % rank;
            double sum = 0.0;
            for (u32 i = 0; i < rank; i++) sum += (double)image(m, keep, sign, row, i, 1) * s[i * rank + column];
            m.grad_b[at] += (float)(factor * sum);
        }
    } else {
        for (u64 at = first + threadIdx.x; at < end; at += blockDim.x)
            for (u32 row = 0; row < rank; row++) {
                double sum = 0.0;
                for (u32 i = 0; i < rank; i++) sum += t[row * rank + i] * (double)m.a[i * n + at];
                m.grad_a[row * n + at] += (float)(factor * sum);
            }
    }
}
