// 3x3 convolutions of stride 1 over channels-last maps, padded by one pixel, after Lavin & Gray 2016 ("Fast
// Algorithms for Convolutional Neural Networks"): F(4x4, 3x3). Each tile of 4x4 outputs takes 36
// multiplications a pair of channels, where the sum itself takes 144.
//
// A block of tiles goes through all three parts (input transform, 36 matrix products, output transform) on
// one core, so that what lies between them never leaves its L2 cache. What a tile gives does not depend on
// the block it is in. Channels in and out are multiples of 16; the interface is in winograd.py.
//
// A map may be `shuffled` (Shi et al. 2016): its pixels lie as twice as many rows and columns of a quarter of
// the channels, 16 or a multiple of it. Its channels are then counted corner by corner of these four.

#include <algorithm>

#include "products.h"

namespace {

constexpr int IN = 6, OUT = 4, POINTS = IN * IN;
// B^T d, G g and A^T m of the paper, on vectors of channels.
void input(const Vec* d, Vec* r) {
    Vec even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], even2 = d[4] - d[2], odd2 = 2 * (d[3] - d[1]);
    r[0] = 4 * d[0] - 5 * d[2] + d[4];
    r[1] = even + odd;
    r[2] = even - odd;
    r[3] = even2 + odd2;
    r[4] = even2 - odd2;
    r[5] = 4 * d[1] - 5 * d[3] + d[5];
}

void kernel(const Vec* g, Vec* r) {
    Vec ends = g[0] + g[2], ends4 = g[0] + 4 * g[2];
    r[0] = g[0] / 4;
    r[1] = -(ends + g[1]) / 6;
    r[2] = -(ends - g[1]) / 6;
    r[3] = (ends4 + 2 * g[1]) / 24;
    r[4] = (ends4 - 2 * g[1]) / 24;
    r[5] = g[2];
}

void output(const Vec* m, Vec* r) {
    Vec sum = m[1] + m[2], difference = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    r[0] = m[0] + sum + sum2;
    r[1] = difference + 2 * difference2;
    r[2] = sum + 4 * sum2;
    r[3] = difference + 8 * difference2 + m[5];
}

// A d and G^T u: what the gradients of output and kernel take.
void output_back(const Vec* d, Vec* r) {
    Vec even = d[0] + d[2], odd = d[1] + d[3], even2 = d[0] + 4 * d[2], odd2 = 2 * d[1] + 8 * d[3];
    r[0] = d[0];
    r[1] = even + odd;
    r[2] = even - odd;
    r[3] = even2 + odd2;
    r[4] = even2 - odd2;
    r[5] = d[3];
}

void kernel_back(const Vec* u, Vec* r) {
    Vec sum = u[1] + u[2], difference = u[2] - u[1], sum2 = u[3] + u[4], difference2 = u[3] - u[4];
    r[0] = u[0] / 4 - sum / 6 + sum2 / 24;
    r[1] = difference / 6 + difference2 / 12;
    r[2] = u[5] - sum / 6 + sum2 / 6;
}

// Height and width are those of the result. With `doubled`, the input is half as large, and every pixel of it
// stands for 2x2.
struct Maps {
    int64_t images, height, width, in, out;
    int doubled;
    int64_t down() const { return (height + OUT - 1) / OUT; }
    int64_t across() const { return (width + OUT - 1) / OUT; }
    int64_t tiles() const { return images * down() * across(); }
};

struct Tile {
    int64_t image, top, left;
    Tile(const Maps& s, int64_t i)
        : image(i / (s.down() * s.across())),
          top(i / s.across() % s.down() * OUT),
          left(i % s.across() * OUT) {}
};

// Whether a transformed input is 0 here: where pixels are equal by twos, the third row and column are.
bool empty(const Maps& s, int point) { return s.doubled && (point / IN == 2 || point % IN == 2); }

// A transformed block (36, tiles, channels), its points apart.
struct Block {
    int64_t row, point;
    Block(int64_t tiles, int64_t channels) : row(channels), point(apart(tiles * channels)) {}
    int64_t size() const { return POINTS * point; }
};

// How a map (N, H, W, K) lies in memory: its rows and pixels, in floats, and the channels of a pixel.
struct Layout {
    int64_t channels, row, pixel, quarter;
    Layout(int64_t width, int64_t channels, int shuffled)
        : channels(channels),
          row(width * channels),
          pixel(shuffled ? channels / 2 : channels),
          quarter(shuffled ? channels / 4 : channels) {}
    int64_t at(int64_t k) const {
        if (quarter == channels) return k;
        const int64_t corner = k / quarter;
        return corner / 2 * (row / 2) + corner % 2 * quarter + k % quarter;
    }
    int64_t reach() const { return at(channels - 1) + 1; }
};

// Which of a layer's channels is the one counted k.
int64_t original(int64_t k, int64_t channels, int shuffled) {
    return shuffled ? k % (channels / 4) * 4 + k / (channels / 4) : k;
}

// Asks for what the tile to the right takes: the cache's own guesses end with each row of a tile. Where there
// is no such tile, nothing happens.
inline void ahead(const float* p) { __builtin_prefetch(p, 0); }
inline void ahead(float* p) { __builtin_prefetch(p, 1); }

void transform_input(const Maps& s, Tile tile, const Layout& in, const float* x, const float* zeros, float* v,
                     int64_t point) {
    const float* from[IN][IN];
    for (int i = 0; i < IN; i++)
        for (int j = 0; j < IN; j++) {
            int64_t y = tile.top + i - 1, z = tile.left + j - 1;
            bool inside = y >= 0 && y < s.height && z >= 0 && z < s.width;
            const int64_t row = (tile.image * s.height + y) >> s.doubled;
            from[i][j] = inside ? x + row * in.row + (z >> s.doubled) * in.pixel : zeros;
        }
    const int64_t pixels = OUT >> s.doubled;
    const float* next = from[2][2] + pixels * in.pixel;
    for (int64_t c = 0; c < s.in; c += LANES) {
        const int64_t at = in.at(c);
        for (int i = 0; i < pixels; i++)
            for (int j = 0; j < pixels; j++) ahead(next + i * in.row + j * in.pixel + at);
        alignas(64) Vec half[IN][IN];
        for (int j = 0; j < IN; j++) {
            Vec d[IN], r[IN];
            for (int i = 0; i < IN; i++) d[i] = load(from[i][j] + at);
            input(d, r);
            for (int i = 0; i < IN; i++) half[i][j] = r[i];
        }
        for (int i = 0; i < IN; i++) {
            Vec r[IN];
            input(half[i], r);
            for (int j = 0; j < IN; j++) store(v + (i * IN + j) * point + c, r[j]);
        }
    }
}

// The channels of a panel of the result; m has only them.
void transform_output(const Maps& s, Tile tile, const Layout& out, const float* m, int64_t point,
                      const float* bias, const float* plus, Panel panel, float* y) {
    int rows = std::min<int64_t>(OUT, s.height - tile.top),
        columns = std::min<int64_t>(OUT, s.width - tile.left);
    const int64_t corner = (tile.image * s.height + tile.top) * out.row + tile.left * out.pixel;
    for (int64_t k = 0; k < panel.wide; k += LANES) {
        alignas(64) Vec half[OUT][IN];
        for (int j = 0; j < IN; j++) {
            Vec d[IN], r[OUT];
            for (int i = 0; i < IN; i++) d[i] = load(m + (i * IN + j) * point + k);
            output(d, r);
            for (int i = 0; i < OUT; i++) half[i][j] = r[i];
        }
        const int64_t begin = corner + out.at(panel.first + k);
        for (int i = 0; i < rows; i++)
            for (int j = OUT; j < 2 * OUT; j++) {
                ahead(y + begin + i * out.row + j * out.pixel);
                if (plus) ahead(plus + begin + i * out.row + j * out.pixel);
            }
        Vec add = bias ? load(bias + panel.first + k) : Vec{};
        for (int i = 0; i < rows; i++) {
            Vec r[OUT];
            output(half[i], r);
            for (int j = 0; j < columns; j++) {
                const int64_t at = begin + i * out.row + j * out.pixel;
                store(y + at, plus ? r[j] + add + load(plus + at) : r[j] + add);
            }
        }
    }
}

// Adds the sums over pixels to `total` (K).
void transform_gradient(const Maps& s, Tile tile, const Layout& out, const float* dy, const float* zeros,
                        float* z, int64_t point, float* total) {
    const float* from[OUT][OUT];
    for (int i = 0; i < OUT; i++)
        for (int j = 0; j < OUT; j++) {
            bool inside = tile.top + i < s.height && tile.left + j < s.width;
            int64_t row = tile.image * s.height + tile.top + i;
            from[i][j] = inside ? dy + row * out.row + (tile.left + j) * out.pixel : zeros;
        }
    for (int64_t k = 0; k < s.out; k += LANES) {
        const int64_t at = out.at(k);
        alignas(64) Vec half[IN][OUT];
        Vec sum = load(total + k);
        for (int j = 0; j < OUT; j++) {
            Vec d[OUT], r[IN];
            for (int i = 0; i < OUT; i++) d[i] = load(from[i][j] + at);
            sum += d[0] + d[1] + (d[2] + d[3]);
            output_back(d, r);
            for (int i = 0; i < IN; i++) half[i][j] = r[i];
        }
        store(total + k, sum);
        for (int i = 0; i < IN; i++) {
            Vec r[IN];
            output_back(half[i], r);
            for (int j = 0; j < IN; j++) store(z + (i * IN + j) * point + k, r[j]);
        }
    }
}

}  // namespace

extern "C" {

// u (36 C K floats: panel by panel, point by point) of the weights w, whose strides are given in floats: (K,
// C, 3, 3), or, with `back`, what the gradient of x takes: (C, K, 3, 3) turned by half a circle. real: the
// first channels of w's result, the others, up to a multiple of 16, being 0. shuffled: w's result is.
void winograd_weights(const float* w, int64_t stride_k, int64_t stride_c, int64_t stride_y, int64_t stride_x,
                      int64_t in, int64_t out, int64_t real, int back, int shuffled, float* u, int threads) {
    if (back) std::swap(stride_k, stride_c);
    const int64_t real_in = back ? real : in, real_out = back ? out : real;
#pragma omp parallel for num_threads(threads)
    for (int64_t k = 0; k < out; k += LANES) {
        const auto [first, wide] = Panel(k, out);
        for (int64_t c = 0; c < in; c++) {
            float* to = u + POINTS * first * in + c * wide + k - first;
            alignas(64) Vec half[IN][3];
            for (int j = 0; j < 3; j++) {
                Vec g[3], r[IN];
                for (int i = 0; i < 3; i++) {
                    const float* from = w + original(c, in, back && shuffled) * stride_c +
                                        original(k, out, !back && shuffled) * stride_k +
                                        (back ? 2 - i : i) * stride_y + (back ? 2 - j : j) * stride_x;
                    const int64_t lanes = c < real_in ? std::min<int64_t>(LANES, real_out - k) : 0;
                    const int64_t step = !back && shuffled ? 4 * stride_k : stride_k;
                    g[i] = Vec{};
                    for (int lane = 0; lane < lanes; lane++) g[i][lane] = from[lane * step];
                }
                kernel(g, r);
                for (int i = 0; i < IN; i++) half[i][j] = r[i];
            }
            for (int i = 0; i < IN; i++) {
                Vec r[IN];
                kernel(half[i], r);
                for (int j = 0; j < IN; j++) store(to + (i * IN + j) * in * wide, r[j]);
            }
        }
    }
}

// y (N, H, W, K) = x (N, H, W, C) * u + bias (K) + plus (N, H, W, K), the last two perhaps null, in blocks of
// `most` tiles; `doubled`: x (N, H / 2, W / 2, C). The panels of a block are shared among `sharers` threads:
// few tiles are done soon, and what takes time is reading the weights. shuffled_x, shuffled_y: how they lie.
// 0, or 1: no memory.
int winograd(const float* x, const float* u, const float* bias, const float* plus, float* y, int64_t images,
             int64_t height, int64_t width, int64_t in, int64_t out, int doubled, int shuffled_x,
             int shuffled_y, int64_t most, int sharers, int threads) {
    const Maps s{images, height, width, in, out, doubled};
    const Layout layout_x(width >> doubled, in, shuffled_x), layout_y(width, out, shuffled_y);
    const int64_t blocks = (s.tiles() + most - 1) / most;
    const Block block_v(most, in), block_m(most, PANEL);
    const int64_t vectors = out / LANES;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        static thread_local Scratch scratch;
        const int64_t reach = layout_x.reach();
        float *zeros = scratch.of(reach + block_v.size() + block_m.size(), failed), *v = nullptr,
              *m = nullptr;
        if (zeros) {
            v = zeros + reach, m = v + block_v.size();
            std::fill(zeros, zeros + reach, 0.0f);
            for (int p = 0; p < POINTS; p++)
                if (empty(s, p)) std::fill(m + p * block_m.point, m + (p + 1) * block_m.point, 0.0f);
        }
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < blocks * sharers; item++) {
            if (!zeros) continue;
            const int64_t first = item / sharers * most, n = std::min(most, s.tiles() - first);
            for (int64_t t = 0; t < n; t++)
                transform_input(s, Tile(s, first + t), layout_x, x, zeros, v + t * block_v.row,
                                block_v.point);
            // the panels that begin in this thread's share of the channels
            const int64_t begin = vectors * (item % sharers) / sharers * LANES;
            const int64_t end = vectors * (item % sharers + 1) / sharers * LANES;
            for (int64_t k = 0; k < end;) {
                const Panel panel(k, out);
                if (k < begin) {
                    k += panel.wide;
                    continue;
                }
                for (int p = 0; p < POINTS; p++)
                    if (!empty(s, p))
                        multiply_panel(panel.wide, v + p * block_v.point, block_v.row, n,
                                       u + (POINTS * k + p * panel.wide) * in, in, m + p * block_m.point,
                                       block_m.row);
                for (int64_t t = 0; t < n; t++)
                    transform_output(s, Tile(s, first + t), layout_y, m + t * block_m.row, block_m.point,
                                     bias, plus, panel, y);
                k += panel.wide;
            }
        }
    }
    return failed;
}

// dw, whose strides are given as for the weights, for the first `real` channels, and db (K) of x (N, H, W, C)
// and dy (N, H, W, K), perhaps shuffled, in blocks of `most` tiles. sums: scratch of threads * (36 C + 1) K
// floats; thread by thread, so that the result is always the same. 0, or 1: no memory.
int winograd_weights_back(const float* x, const float* dy, float* dw, float* db, int64_t stride_k,
                          int64_t stride_c, int64_t stride_y, int64_t stride_x, int64_t images,
                          int64_t height, int64_t width, int64_t in, int64_t out, int64_t real, int doubled,
                          int shuffled, float* sums, int64_t most, int threads) {
    const Maps s{images, height, width, in, out, doubled};
    const Layout layout_x(width >> doubled, in, 0), layout_y(width, out, shuffled);
    const int64_t blocks = (s.tiles() + most - 1) / most;
    const Block block_v(most, in), block_z(most, out);
    const int64_t weights = POINTS * in * out, size = weights + out;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        static thread_local Scratch scratch;
        const int64_t wide = std::max(in, layout_y.reach());
        float* zeros = scratch.of(wide + block_v.size() + block_z.size() + out, failed);
        float *v = nullptr, *z = nullptr, *total = nullptr;
        if (zeros) {
            v = zeros + wide, z = v + block_v.size(), total = z + block_z.size();
            std::fill(zeros, zeros + wide, 0.0f);
        }
#pragma omp for schedule(static, 1)
        for (int part = 0; part < threads; part++) {
            float* u = sums + part * size;
            std::fill(u, u + size, 0.0f);
            for (int64_t b = blocks * part / threads; zeros && b < blocks * (part + 1) / threads; b++) {
                const int64_t first = b * most, n = std::min(most, s.tiles() - first);
                std::fill(total, total + out, 0.0f);
                for (int64_t t = 0; t < n; t++) {
                    const Tile tile(s, first + t);
                    transform_input(s, tile, layout_x, x, zeros, v + t * block_v.row, block_v.point);
                    transform_gradient(s, tile, layout_y, dy, zeros, z + t * block_z.row, block_z.point,
                                       total);
                }
                for (int64_t k = 0; k < out; k++) u[weights + k] += total[k];
                for (int p = 0; p < POINTS; p++) {
                    if (empty(s, p)) continue;
                    const float *a = v + p * block_v.point, *gradient = z + p * block_z.point;
                    float* to = u + p * in * out;
                    add_all_products(a, block_v.row, in, gradient, block_z.row, out, n, to);
                }
            }
        }
#pragma omp for
        for (int64_t k = 0; k < out; k += LANES) {
            Vec bias = {};
            for (int part = 0; part < threads; part++) bias += load(sums + part * size + weights + k);
            const int64_t first = original(k, out, shuffled), step = shuffled ? 4 : 1;
            for (int lane = 0; lane < LANES; lane++) db[first + lane * step] = bias[lane];
            for (int64_t c = 0; c < in; c++) {
                alignas(64) Vec half[3][IN];
                for (int j = 0; j < IN; j++) {
                    Vec u[IN], r[3];
                    for (int i = 0; i < IN; i++) {
                        const float* from = sums + ((i * IN + j) * in + c) * out + k;
                        u[i] = load(from);
                        for (int part = 1; part < threads; part++) u[i] += load(from + part * size);
                    }
                    kernel_back(u, r);
                    for (int i = 0; i < 3; i++) half[i][j] = r[i];
                }
                for (int i = 0; i < 3; i++) {
                    Vec r[3];
                    kernel_back(half[i], r);
                    for (int j = 0; j < 3; j++)
                        for (int lane = 0; lane < std::min<int64_t>(LANES, real - k); lane++)
                            dw[(first + lane * step) * stride_k + c * stride_c + i * stride_y +
                               j * stride_x] = r[j][lane];
                }
            }
        }
    }
    return failed;
}
}
