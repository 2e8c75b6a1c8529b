// Convolutions of any kernel, stride and padding over channels-last maps, and their transposes, as matrix
// products. A patch of the large map (N, H, W, C) belongs to each pixel of the small one (N, h, w, K): the
// window that the kernel sees from there. Patches of P = kernel_y kernel_x C numbers are copied side by side,
// or added back, a block at a time in the L2 cache. The interface is in patches.py.

#include <algorithm>

#include "products.h"
#include "shares.h"

namespace {

struct Maps {
    int64_t images, height, width, channels;  // of the large map
    int64_t down, across, out;                // of the small one
    int64_t kernel_y, kernel_x, stride, top, left;
    int64_t line() const { return kernel_x * channels; }
    int64_t patch() const { return kernel_y * line(); }
    int64_t pixels() const { return images * down * across; }
    int64_t image() const { return height * width * channels; }
};

// The columns of a product.
int64_t filled(int64_t n) { return (n + 15) / 16 * 16; }

// Rows of an image of the large map.
struct Rows {
    int64_t begin, end;
    bool have(int64_t y) const { return y >= begin && y < end; }
};

// Of a line of the window of the small map's pixel `over` of a row: where it begins in a row of the large
// map, perhaps outside of it, and which of its floats lie inside, perhaps none.
struct Line {
    int64_t at, begin, end;
    Line(const Maps& s, int64_t over) {
        const int64_t x = over * s.stride - s.left;
        at = x * s.channels;
        begin = std::clamp<int64_t>(-x, 0, s.kernel_x) * s.channels;
        end = std::max(begin, std::clamp<int64_t>(s.width - x, 0, s.kernel_x) * s.channels);
    }
};

// Calls `call` for n pixels of the small map, row by row: with how many there were before, how many follow in
// this row, the row of the large map where their windows begin, that row's image, and the first one's place.
template <class Call>
void rows_of(const Maps& s, int64_t first, int64_t n, Call call) {
    int64_t over = first % s.across, down = first / s.across % s.down, image = first / s.across / s.down;
    for (int64_t i = 0; i < n;) {
        const int64_t count = std::min(n - i, s.across - over);
        call(i, count, down * s.stride - s.top, image, over);
        i += count, over = 0;
        if (++down == s.down) down = 0, image++;
    }
}

// n floats of a line, of which those from `begin` to `end` lie in the map, the others being 0.
void copy_line(const float* from, float* to, int64_t n, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
    if (n <= LANES) {
        _mm512_mask_storeu_ps(to, between(0, n), _mm512_maskz_loadu_ps(between(begin, end), from));
        return;
    }
#endif
    if (end - begin < n) clear(to, n);
    copy(from + begin, to + begin, end - begin);
}

// The patches of n pixels, each with a 1 behind it, whose weight is the bias.
void copy_patches(const Maps& s, const float* x, int64_t first, int64_t n, float* to, int64_t row) {
    const int64_t line = s.line(), step = s.stride * s.channels;
    // the pixels of a row whose windows have all their columns in the map
    const int64_t lowest = (s.left + s.stride - 1) / s.stride, spare = s.width + s.left - s.kernel_x;
    const int64_t beyond = spare < 0 ? lowest : std::max(lowest, spare / s.stride + 1);
    rows_of(s, first, n, [=](int64_t i, int64_t count, int64_t y, int64_t image, int64_t over) {
        const int64_t begin = std::clamp(lowest - over, int64_t{0}, count);
        const int64_t end = std::clamp(beyond - over, begin, count);
        for (int64_t j = 0; j < s.kernel_y; j++) {
            float* p = to + i * row + j * line;
            const bool there = y + j >= 0 && y + j < s.height;
            const float* from = x + (image * s.height + y + j) * s.width * s.channels;
            const auto edges = [&](int64_t k, int64_t last) {
                for (; k < last; k++) {
                    const Line part(s, over + k);
                    const int64_t begin = there ? part.begin : 0, end = there ? part.end : 0;
                    copy_line(from + part.at, p + k * row, line, begin, end);
                }
            };
            if (!there) {
                edges(0, count);
                continue;
            }
            edges(0, begin);
            const float* whole = from + (over * s.stride - s.left) * s.channels;
            for (int64_t k = begin; k < end; k++) copy_line(whole + k * step, p + k * row, line, 0, line);
            edges(end, count);
        }
    });
    for (int64_t i = 0; i < n; i++) to[i * row + s.patch()] = 1;
}

// Adds n floats of a line, of which those from `begin` to `end` lie in the map.
void add_line(const float* from, float* to, int64_t n, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
    if (n <= LANES) {
        const __mmask16 mask = between(begin, end);
        const Vec sum = _mm512_maskz_loadu_ps(mask, to) + (Vec)_mm512_maskz_loadu_ps(mask, from);
        _mm512_mask_storeu_ps(to, mask, sum);
        return;
    }
#endif
    add(from + begin, to + begin, end - begin);
}

void add_patches(const Maps& s, Rows rows, float* x, int64_t first, int64_t n, const float* from,
                 int64_t row) {
    const int64_t line = s.line();
    rows_of(s, first, n, [=](int64_t i, int64_t count, int64_t y, int64_t image, int64_t over) {
        // all lines of a window, then of the next: the one beside it overlaps, and has to wait for its sums
        for (int64_t k = 0; k < count; k++) {
            const Line part(s, over + k);
            float* to = x + (image * s.height + y) * s.width * s.channels + part.at;
            for (int64_t j = 0; j < s.kernel_y; j++)
                if (rows.have(y + j))
                    add_line(from + (i + k) * row + j * line, to + j * s.width * s.channels, line, part.begin,
                             part.end);
        }
    });
}

// Where the numbers of a kernel are: floats from one channel of the small map, and of the large one, to the
// next, and from the first tap to each.
struct Lie {
    int64_t small, large;
    const int64_t* taps;
};

// u: the panels of the matrix that takes patches to pixels, with the bias (K or null) as its last row, or
// with `back` of that which takes pixels to patches.
void pack(const Maps& s, const float* w, const Lie& lie, const float* bias, bool back, float* u,
          int threads) {
    const int64_t rows = back ? s.out : s.patch() + 1, real = back ? s.patch() : s.out;
    const int64_t columns = filled(real);
    const auto at = [=](int64_t row, int64_t column) {
        const Panel panel(column, columns);
        return u + panel.first * rows + row * panel.wide + column - panel.first;
    };
    if (columns > real) std::fill(u, u + rows * columns, 0.0f);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t tap = 0; tap < s.kernel_y * s.kernel_x; tap++) {
        const float* from = w + lie.taps[tap];
        for (int64_t k = 0; k < s.out; k++)
            for (int64_t c = 0; c < s.channels; c++) {
                const int64_t p = tap * s.channels + c;
                *(back ? at(k, p) : at(p, k)) = from[k * lie.small + c * lie.large];
            }
    }
    if (!back)
        for (int64_t k = 0; k < s.out; k++) *at(rows - 1, k) = bias ? bias[k] : 0;
}

}  // namespace

extern "C" {

// All weights w: the taps' (K, C), as their strides say; see `Lie`. u: scratch of (P + 1) floats for each of
// K, or, for the transposed convolution, of K for each of P, filled up to a multiple of 16.

// y (N, h, w, K filled up to a multiple of 16): patches of x by w, and bias (K or null). 0, or 1: no memory.
int patches_gather(const float* x, const float* w, int64_t small, int64_t large, const int64_t* taps,
                   const float* bias, float* u, float* y, const Maps* maps, int64_t most, int threads) {
    const Maps& s = *maps;
    pack(s, w, {small, large, taps}, bias, false, u, threads);
    const int64_t out = filled(s.out), rows = s.patch() + 1, row = apart(rows);
    const int64_t blocks = (s.pixels() + most - 1) / most;
    Shares shares(blocks, threads);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        static thread_local Scratch scratch;
        float* patches = scratch.of(most * row, failed);
        shares.each([&](int64_t b) {
            if (!patches) return;
            const int64_t first = b * most, n = std::min(most, s.pixels() - first);
            copy_patches(s, x, first, n, patches, row);
            for (int64_t k = 0; k < out;) {
                const Panel panel(k, out);
                multiply_panel(panel.wide, patches, row, n, u + k * rows, rows, y + first * out + k, out);
                k += panel.wide;
            }
        });
    }
    return failed;
}

// x: patches of y (N, h, w, K) by w, added to the bias where they overlap. bias: (C, corners, corners) or
// null, of which a pixel takes the number that its row and column have by turns. Each image in `bands` of
// rows, whose threads multiply once more what two of them share. 0, or 1: no memory.
int patches_scatter(const float* y, const float* w, int64_t small, int64_t large, const int64_t* taps,
                    const float* bias, int64_t corners, float* u, float* x, const Maps* maps, int64_t most,
                    int64_t bands, int threads) {
    const Maps& s = *maps;
    pack(s, w, {small, large, taps}, nullptr, true, u, threads);
    const int64_t line = s.width * s.channels;
    const int64_t columns = filled(s.patch()), row = apart(columns);
    Shares shares(s.images * bands, threads);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        static thread_local Scratch scratch;
        float* patches = scratch.of(most * row + corners * line, failed);
        float* start = patches + most * row;  // what rows begin as
        for (int64_t i = 0; patches && i < corners * line; i++) {
            const int64_t down = i / line, across = i % line / s.channels % corners, c = i % s.channels;
            start[i] = bias ? bias[(c * corners + down) * corners + across] : 0;
        }
        shares.each([&](int64_t item) {
            if (!patches) return;
            const int64_t i = item / bands, band = item % bands;
            const Rows rows{s.height * band / bands, s.height * (band + 1) / bands};
            for (int64_t j = rows.begin; j < rows.end; j++)
                copy(start + j % corners * line, x + i * s.image() + j * line, line);
            // the rows of the small map whose patches reach these
            const int64_t lowest =
                std::max<int64_t>(0, rows.begin + s.top - s.kernel_y + s.stride) / s.stride;
            const int64_t highest = std::min(s.down, (rows.end - 1 + s.top) / s.stride + 1);
            const int64_t last = (i * s.down + highest) * s.across;
            for (int64_t first = (i * s.down + lowest) * s.across; first < last; first += most) {
                const int64_t n = std::min(most, last - first);
                for (int64_t p = 0; p < columns;) {
                    const Panel panel(p, columns);
                    multiply_panel(panel.wide, y + first * s.out, s.out, n, u + p * s.out, s.out, patches + p,
                                   row);
                    p += panel.wide;
                }
                add_patches(s, rows, x, first, n, patches, row);
            }
        });
    }
    return failed;
}

// dw, which lies as w, and db (K): patches of x times pixels of y (N, h, w, K; K a multiple of 16), for the
// first `real` channels. sums: scratch of threads * (P + 1) K floats; thread by thread, so that the result is
// always the same. 0, or 1: no memory.
int patches_weights(const float* x, const float* y, float* dw, float* db, int64_t small, int64_t large,
                    const int64_t* taps, const Maps* maps, int64_t real, float* sums, int64_t most,
                    int threads) {
    const Maps& s = *maps;
    const int64_t rows = s.patch() + 1, row = apart(rows), size = rows * s.out;
    const int64_t blocks = (s.pixels() + most - 1) / most;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        static thread_local Scratch scratch;
        float* patches = scratch.of(most * row, failed);
#pragma omp for schedule(static, 1)
        for (int part = 0; part < threads; part++) {
            float* u = sums + part * size;
            std::fill(u, u + size, 0.0f);
            for (int64_t b = blocks * part / threads; patches && b < blocks * (part + 1) / threads; b++) {
                const int64_t first = b * most, n = std::min(most, s.pixels() - first);
                copy_patches(s, x, first, n, patches, row);
                add_all_products(patches, row, rows, y + first * s.out, s.out, s.out, n, u);
            }
        }
#pragma omp for
        for (int64_t p = 0; p < rows; p++) {
            const int64_t tap = p / s.channels, c = p % s.channels;
            const bool bias = p == rows - 1;
            float* to = bias ? db : dw + taps[tap] + c * large;
            for (int64_t k = 0; k < real; k++) {
                float sum = 0;
                for (int part = 0; part < threads; part++) sum += sums[part * size + p * s.out + k];
                to[k * (bias ? 1 : small)] = sum;
            }
        }
    }
    return failed;
}
}
