// Which of K codes is nearest to each of N vectors: the least of |c|^2 - 2 x c. The distances stay in
// registers: a panel of codes at a time, the least so far of every lane.

#include <algorithm>
#include <limits>

#include "products.h"

namespace {

constexpr int64_t BLOCK = 96;  // vectors whose least distances lie in the cache together

struct Least {
    Vec distance;
    Ints code;
};

// R vectors of x (R, D) and the codes from `first` on, of the panel u (D, PANEL) and their `squares`.
template <int R>
void compare(const float* x, int64_t size, const float* u, const float* squares, int64_t first,
             Least* least) {
    Vec sums[R][WIDE];
    UNROLLED
    for (int i = 0; i < R; i++)
        UNROLLED
        for (int j = 0; j < WIDE; j++) sums[i][j] = load(squares + j * LANES);
    for (int64_t c = 0; c < size; c++) {
        Vec b[WIDE];
        UNROLLED
        for (int j = 0; j < WIDE; j++) b[j] = load(u + (c * WIDE + j) * LANES);
        UNROLLED
        for (int i = 0; i < R; i++)
            UNROLLED
            for (int j = 0; j < WIDE; j++) sums[i][j] += x[i * size + c] * b[j];
    }
    UNROLLED
    for (int j = 0; j < WIDE; j++) {
        Ints code;
        for (int lane = 0; lane < LANES; lane++) code[lane] = first + j * LANES + lane;
        UNROLLED
        for (int i = 0; i < R; i++) {
            const auto less = sums[i][j] < least[i].distance;
            least[i].distance = less ? sums[i][j] : least[i].distance;
            least[i].code = less ? code : least[i].code;
        }
    }
}

// The first of the nearest.
int64_t chosen(const Least& least) {
    float distance = least.distance[0];
    int32_t code = least.code[0];
    for (int lane = 1; lane < LANES; lane++)
        if (least.distance[lane] < distance ||
            (least.distance[lane] == distance && least.code[lane] < code)) {
            distance = least.distance[lane];
            code = least.code[lane];
        }
    return code;
}

}  // namespace

extern "C" {

// Panels of codes are filled up to a multiple of so many.
int64_t nearest_panel() { return PANEL; }

// token (N) of x (N, D) and codes (K, D), K below 2^31. packed: scratch of (D + 1) floats a code, for K
// filled up to whole panels.
void nearest(const float* x, const float* codes, int64_t n, int64_t k, int64_t size, float* packed,
             int64_t* token, int threads) {
    const int64_t panels = (k + PANEL - 1) / PANEL;
    float* squares = packed + panels * PANEL * size;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t p = 0; p < panels; p++)
            for (int64_t lane = 0; lane < PANEL; lane++) {
                const int64_t code = p * PANEL + lane;
                float square = code < k ? 0.0f : std::numeric_limits<float>::infinity();
                for (int64_t c = 0; c < size; c++) {
                    const float v = code < k ? codes[code * size + c] : 0.0f;
                    packed[(p * size + c) * PANEL + lane] = -2 * v;
                    square += v * v;
                }
                squares[code] = square;
            }
#pragma omp for
        for (int64_t begin = 0; begin < n; begin += BLOCK) {
            const int64_t end = std::min(n, begin + BLOCK);
            alignas(64) Least least[BLOCK];
            std::fill(least, least + BLOCK, Least{Vec{} + std::numeric_limits<float>::infinity(), Ints{}});
            for (int64_t p = 0; p < panels; p++) {
                const float* u = packed + p * PANEL * size;
                int64_t i = begin;
                for (; i + ROWS <= end; i += ROWS)
                    compare<ROWS>(x + i * size, size, u, squares + p * PANEL, p * PANEL, least + i - begin);
                for (; i < end; i++)
                    compare<1>(x + i * size, size, u, squares + p * PANEL, p * PANEL, least + i - begin);
            }
            for (int64_t i = begin; i < end; i++) token[i] = chosen(least[i - begin]);
        }
    }
}
}
