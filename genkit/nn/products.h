// Products of small matrices, with their sums in registers.
#pragma once

#include "vectors.h"

// A product of R rows and V vectors of columns has its sums and factors in registers: the shapes.
constexpr int WIDE = REGISTERS == 32 ? 4 : 2, ROWS = 6, ROWS_NARROW = REGISTERS == 32 ? 12 : 6;
constexpr int64_t PANEL = WIDE * LANES, PAIR = 2 * LANES;

// Columns that lie together, those of k among `out`: PANEL of them, and of the last ones PAIR or LANES.
struct Panel {
    int64_t first, wide;
    Panel(int64_t k, int64_t out) {
        const int64_t whole = out / PANEL * PANEL, pairs = whole + (out - whole) / PAIR * PAIR;
        wide = k < whole ? PANEL : k < pairs ? PAIR : LANES;
        const int64_t begin = k < whole ? 0 : k < pairs ? whole : pairs;
        first = begin + (k - begin) / wide * wide;
    }
};

// R rows of a (R, C) times V vectors of columns of the panel u (C, V * LANES).
template <int R, int V>
static inline void multiply(const float* a, int64_t row, const float* u, int64_t channels, float* m,
                            int64_t out) {
    Vec sums[R][V];
    UNROLLED
    for (int i = 0; i < R; i++)
        UNROLLED
        for (int j = 0; j < V; j++) sums[i][j] = Vec{};
    for (int64_t c = 0; c < channels; c++) {
        Vec b[V];
        UNROLLED
        for (int j = 0; j < V; j++) b[j] = load(u + (c * V + j) * LANES);
        UNROLLED
        for (int i = 0; i < R; i++)
            UNROLLED
            for (int j = 0; j < V; j++) sums[i][j] += a[i * row + c] * b[j];
    }
    UNROLLED
    for (int i = 0; i < R; i++)
        UNROLLED
        for (int j = 0; j < V; j++) store(m + i * out + j * LANES, sums[i][j]);
}

template <int R, int V>
static inline void multiply_all(const float* a, int64_t row, int64_t n, const float* u, int64_t channels,
                                float* m, int64_t out) {
    int64_t i = 0;
    for (; i + R <= n; i += R) multiply<R, V>(a + i * row, row, u, channels, m + i * out, out);
    for (; i + 4 <= n; i += 4) multiply<4, V>(a + i * row, row, u, channels, m + i * out, out);
    for (; i + 2 <= n; i += 2) multiply<2, V>(a + i * row, row, u, channels, m + i * out, out);
    for (; i < n; i++) multiply<1, V>(a + i * row, row, u, channels, m + i * out, out);
}

// The same for n rows and a panel of any width.
static inline void multiply_panel(int64_t wide, const float* a, int64_t row, int64_t n, const float* u,
                                  int64_t channels, float* m, int64_t out) {
    const auto call = wide == PANEL  ? multiply_all<ROWS, WIDE>
                      : wide == PAIR ? multiply_all<ROWS_NARROW, 2>
                                     : multiply_all<ROWS_NARROW, 1>;
    call(a, row, n, u, channels, m, out);
}

// Adds to R rows of u (R, V * LANES) the product of the transposed a (n, R) and the columns b (n, V * LANES).
template <int R, int V>
static inline void add_product(const float* a, int64_t row_a, const float* b, int64_t row_b, int64_t n,
                               float* u, int64_t row_u) {
    Vec sums[R][V];
    UNROLLED
    for (int i = 0; i < R; i++)
        UNROLLED
        for (int j = 0; j < V; j++) sums[i][j] = load(u + i * row_u + j * LANES);
    for (int64_t t = 0; t < n; t++) {
        Vec v[V];
        UNROLLED
        for (int j = 0; j < V; j++) v[j] = load(b + t * row_b + j * LANES);
        UNROLLED
        for (int i = 0; i < R; i++)
            UNROLLED
            for (int j = 0; j < V; j++) sums[i][j] += a[t * row_a + i] * v[j];
    }
    UNROLLED
    for (int i = 0; i < R; i++)
        UNROLLED
        for (int j = 0; j < V; j++) store(u + i * row_u + j * LANES, sums[i][j]);
}

template <int V>
static inline void add_products(const float* a, int64_t row_a, int64_t rows, const float* b, int64_t row_b,
                                int64_t n, float* u, int64_t row_u) {
    int64_t i = 0;
    constexpr int R = V == WIDE ? ROWS : REGISTERS == 32 ? 8 : 4;
    for (; i + R <= rows; i += R) add_product<R, V>(a + i, row_a, b, row_b, n, u + i * row_u, row_u);
    for (; i + 4 <= rows; i += 4) add_product<4, V>(a + i, row_a, b, row_b, n, u + i * row_u, row_u);
    for (; i + 2 <= rows; i += 2) add_product<2, V>(a + i, row_a, b, row_b, n, u + i * row_u, row_u);
    for (; i < rows; i++) add_product<1, V>(a + i, row_a, b, row_b, n, u + i * row_u, row_u);
}

// Adds to u (rows, K) the product of the transposed a (n, rows) and b (n, K); K is a multiple of LANES.
static inline void add_all_products(const float* a, int64_t row_a, int64_t rows, const float* b,
                                    int64_t row_b, int64_t out, int64_t n, float* u) {
    int64_t k = 0;
    for (; k + PANEL <= out; k += PANEL) add_products<WIDE>(a, row_a, rows, b + k, row_b, n, u + k, out);
    for (; k + PAIR <= out; k += PAIR) add_products<2>(a, row_a, rows, b + k, row_b, n, u + k, out);
    for (; k < out; k += LANES) add_products<1>(a, row_a, rows, b + k, row_b, n, u + k, out);
}
