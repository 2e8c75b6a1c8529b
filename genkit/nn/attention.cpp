// Attention with small heads: softmax(q k^T / sqrt(size)) v for every head of every image, the numbers of a
// head in the core's cache. WIDTH queries go side by side, one a lane, so that every sum over keys stays in
// its lane; the gradients of keys and values take WIDTH keys side by side instead.

#include <algorithm>

#include "products.h"

namespace {

constexpr int VECTORS = 2;
constexpr int64_t WIDTH = VECTORS * LANES;

// A head of (L, channels) rows: its `size` numbers of each.
struct Head {
    const float* data;
    int64_t rows, size, row;
};

// (size, WIDTH): `n` rows of a head, turned; the lanes that are left are 0.
void turn(const Head& x, int64_t first, int64_t n, float* to) {
    for (int64_t c = 0; c < x.size; c++) {
        for (int64_t i = 0; i < n; i++) to[c * WIDTH + i] = x.data[(first + i) * x.row + c];
        for (int64_t i = n; i < WIDTH; i++) to[c * WIDTH + i] = 0;
    }
}

void turn_back(const float* from, int64_t n, int64_t size, int64_t row, float scale, float* to) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < size; c++) to[i * row + c] = from[c * WIDTH + i] * scale;
}

// (rows, WIDTH): x times `turned` (size, WIDTH); bit for bit the same when the two change places.
void scores(const Head& x, const float* turned, float* to) {
    multiply_panel(WIDTH, x.data, x.row, x.rows, turned, x.size, to, WIDTH);
}

// (size, WIDTH): the transposed x times `weights` (rows, WIDTH).
void weighted(const Head& x, const float* weights, float* to) {
    std::fill(to, to + x.size * WIDTH, 0.0f);
    add_products<VECTORS>(x.data, x.row, x.size, weights, WIDTH, x.rows, to, WIDTH);
}

float scale_of(int64_t size) { return static_cast<float>(1 / __builtin_sqrt(static_cast<double>(size))); }

}  // namespace

extern "C" {

// y (N, Q, heads * size) of q (N, Q, heads * size), k and v (N, K, heads * size). Where not null, highest and
// share (N, heads, Q): the largest product of a query and a key, and 1 / the sum of e^(scale (product -
// highest)). 0, or 1: no memory.
int attend(const float* q, const float* k, const float* v, int64_t images, int64_t queries, int64_t keys,
           int64_t heads, int64_t size, float* y, float* highest, float* share, int threads) {
    const int64_t row = heads * size;
    const float scale = scale_of(size);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        static thread_local Scratch scratch;
        float *turned = scratch.of((2 * size + keys) * WIDTH, failed), *found = nullptr, *p = nullptr;
        if (turned) {
            found = turned + size * WIDTH, p = found + size * WIDTH;
        }
#pragma omp for
        for (int64_t item = 0; item < images * heads; item++) {
            if (!turned) continue;
            const int64_t n = item / heads, from = item % heads * size;
            const Head asking{q + n * queries * row + from, queries, size, row};
            const Head key{k + n * keys * row + from, keys, size, row};
            const Head value{v + n * keys * row + from, keys, size, row};
            for (int64_t first = 0; first < queries; first += WIDTH) {
                const int64_t here = std::min(WIDTH, queries - first);
                turn(asking, first, here, turned);
                scores(key, turned, p);
                Vec most[VECTORS], total[VECTORS] = {};
                for (int i = 0; i < VECTORS; i++) most[i] = load(p + i * LANES);
                for (int64_t j = 1; j < keys; j++)
                    for (int i = 0; i < VECTORS; i++) {
                        const Vec score = load(p + j * WIDTH + i * LANES);
                        most[i] = score > most[i] ? score : most[i];
                    }
                for (int64_t j = 0; j < keys; j++)
                    for (int i = 0; i < VECTORS; i++) {
                        float* at = p + j * WIDTH + i * LANES;
                        const Vec weight = exponential((load(at) - most[i]) * scale);
                        total[i] += weight;
                        store(at, weight);
                    }
                weighted(value, p, found);
                for (int i = 0; i < VECTORS; i++) {
                    total[i] = 1.0f / total[i];
                    for (int64_t c = 0; c < size; c++) {
                        float* at = found + c * WIDTH + i * LANES;
                        store(at, load(at) * total[i]);
                    }
                }
                turn_back(found, here, size, row, 1, y + (n * queries + first) * row + from);
                for (int64_t i = 0; highest && i < here; i++) {
                    highest[item * queries + first + i] = most[i / LANES][i % LANES];
                    share[item * queries + first + i] = total[i / LANES][i % LANES];
                }
            }
        }
    }
    return failed;
}

// The gradients of q, k and v by dy, that of y. With p the weights of the keys and dp = dy v^T, the scores'
// gradient is p (dp - sum of p dp over the keys). common (N, heads, Q): scratch for that sum.
int attend_back(const float* q, const float* k, const float* v, const float* dy, int64_t images,
                int64_t queries, int64_t keys, int64_t heads, int64_t size, const float* highest,
                const float* share, float* common, float* dq, float* dk, float* dv, int threads) {
    const int64_t row = heads * size, most = std::max(queries, keys);
    const float scale = scale_of(size);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        static thread_local Scratch scratch;
        float* turned = scratch.of((3 * size + 2 * most) * WIDTH, failed);
        float *turned2 = nullptr, *found = nullptr, *p = nullptr, *dp = nullptr;
        if (turned) {
            turned2 = turned + size * WIDTH, found = turned2 + size * WIDTH, p = found + size * WIDTH;
            dp = p + most * WIDTH;
        }
#pragma omp for
        for (int64_t item = 0; item < images * heads; item++) {
            if (!turned) continue;
            const int64_t n = item / heads, from = item % heads * size;
            const Head asking{q + n * queries * row + from, queries, size, row};
            const Head above{dy + n * queries * row + from, queries, size, row};
            const Head key{k + n * keys * row + from, keys, size, row};
            const Head value{v + n * keys * row + from, keys, size, row};
            const float *high = highest + item * queries, *part = share + item * queries;
            float* sums = common + item * queries;
            for (int64_t first = 0; first < queries; first += WIDTH) {
                const int64_t here = std::min(WIDTH, queries - first);
                turn(asking, first, here, turned);
                turn(above, first, here, turned2);
                scores(key, turned, p);
                scores(value, turned2, dp);
                for (int i = 0; i < VECTORS; i++) {
                    Vec top = {}, by = {}, sum = {};
                    for (int lane = 0; lane < std::min<int64_t>(LANES, here - i * LANES); lane++)
                        top[lane] = high[first + i * LANES + lane], by[lane] = part[first + i * LANES + lane];
                    for (int64_t j = 0; j < keys; j++) {
                        float* at = p + j * WIDTH + i * LANES;
                        const Vec weight = exponential((load(at) - top) * scale) * by;
                        sum += weight * load(dp + j * WIDTH + i * LANES);
                        store(at, weight);
                    }
                    for (int64_t j = 0; j < keys; j++) {
                        float* at = p + j * WIDTH + i * LANES;
                        store(at, load(at) * (load(dp + j * WIDTH + i * LANES) - sum));
                    }
                    for (int lane = 0; lane < std::min<int64_t>(LANES, here - i * LANES); lane++)
                        sums[first + i * LANES + lane] = sum[lane];
                }
                weighted(key, p, found);
                turn_back(found, here, size, row, scale, dq + (n * queries + first) * row + from);
            }
            for (int64_t first = 0; first < keys; first += WIDTH) {
                const int64_t here = std::min(WIDTH, keys - first), to = (n * keys + first) * row + from;
                turn(key, first, here, turned);
                turn(value, first, here, turned2);
                scores(asking, turned, p);
                scores(above, turned2, dp);
                for (int64_t j = 0; j < queries; j++)
                    for (int i = 0; i < VECTORS; i++) {
                        float *at = p + j * WIDTH + i * LANES, *gradient = dp + j * WIDTH + i * LANES;
                        const Vec weight = exponential((load(at) - high[j]) * scale) * part[j];
                        store(at, weight);
                        store(gradient, weight * (load(gradient) - sums[j]));
                    }
                weighted(above, p, found);
                turn_back(found, here, size, row, 1, dv + to);
                weighted(asking, dp, found);
                turn_back(found, here, size, row, scale, dk + to);
            }
        }
    }
    return failed;
}
}
