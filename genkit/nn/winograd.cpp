// 3x3 convolutions of stride 1 over channels-last maps, padded by one pixel, after Lavin & Gray 2016 ("Fast
// Algorithms for Convolutional Neural Networks"): F(4x4, 3x3). Each tile of 4x4 outputs takes 36
// multiplications a pair of channels, where the sum itself takes 144. Where tiles of 4 pixels reach beyond a
// map, the last ones have 3, which need no point at infinity: 7 pixels take 11 points instead of 12, and 14
// take 22 instead of 24, in each direction.
//
// A block of tiles goes through all three parts (input transform, 36 matrix products, output transform) on
// one core, so that what lies between them never leaves its L2 cache. What a tile gives does not depend on
// the block it is in. Channels in and out are multiples of 16; the interface is in winograd.py.
//
// A map may be `shuffled` (Shi et al. 2016): its pixels lie as twice as many rows and columns of a quarter of
// the channels, 16 or a multiple of it. Its channels are then counted corner by corner of these four.
//
// A convolution of stride 2 is one of stride 1 over its input as a shuffled map, in which a corner has the
// kernel's even or odd rows and columns: of 4x4, two of three in each direction, the first or the last being
// 0. So are their transforms at the point 0 or at infinity, and what would be multiplied with them is left
// out: 100 multiplications for a tile instead of 256.

#include <algorithm>

#include "products.h"
#include "shares.h"

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

// How a side of n pixels is cut into tiles: the first ones, `whole`, have 4 pixels, the others 3 or what is
// left. Where pixels are equal by twos, every tile begins with such a pair.
struct Side {
    int64_t length, tiles, whole;
    Side(int64_t n, bool twos) : length(n), tiles((n + OUT - 1) / OUT) {
        const int64_t over = tiles * OUT - n;
        whole = tiles - std::min(tiles, twos ? std::min<int64_t>(over, 1) : over);
    }
    int64_t begin(int64_t i) const { return OUT * i - std::max<int64_t>(0, i - whole); }
    int64_t pixels(int64_t i) const {
        return std::min<int64_t>(i < whole ? OUT : OUT - 1, length - begin(i));
    }
};

// What winograd.py passes. Height and width are those of the result, or of the small map of a stride of 2.
struct Sizes {
    int64_t images, height, width, in, out;
    int64_t doubled;  // the input is half as large, and every pixel of it stands for 2x2
    int64_t shuffled_in, shuffled_out;
    int64_t strided, kernel, padding;  // with a stride of 2, of which a shuffled map is the larger one
};

struct Maps : Sizes {
    Side down, across;
    explicit Maps(const Sizes& s) : Sizes(s), down(s.height, s.doubled), across(s.width, s.doubled) {}
    int64_t tiles() const { return images * down.tiles * across.tiles; }
    int64_t blocks(int64_t most) const { return (tiles() + most - 1) / most; }
};

struct Tile {
    int64_t image, top, left, rows, columns;
    Tile(const Maps& s, int64_t i) {
        const int64_t over = i % s.across.tiles, down = i / s.across.tiles % s.down.tiles;
        image = i / s.across.tiles / s.down.tiles;
        top = s.down.begin(down), rows = s.down.pixels(down);
        left = s.across.begin(over), columns = s.across.pixels(over);
    }
};

// The points at infinity are the last row and column: which of the two a point is in.
constexpr int KINDS = 4;
constexpr int kind(int point) { return 2 * (point / IN == IN - 1) + (point % IN == IN - 1); }

// For every kind of points, how many tiles so far have them: the row of a point's matrix that the next one
// takes. One without them may write there, as the next one that has them will, and read what it does not use.
struct Counts {
    int64_t of[KINDS] = {};
    void add(const Tile& tile) {
        for (int k = 0; k < KINDS; k++)
            of[k] += (k / 2 == 0 || tile.rows == OUT) && (k % 2 == 0 || tile.columns == OUT);
    }
};

// Which row or column of a kernel is the one counted i of a corner, 0 or 1 in this direction; -1: none.
int64_t tap(const Sizes& s, int64_t i, int64_t corner) {
    if (!s.strided) return i;
    const int64_t found = 2 * (i - 1) + corner + s.padding;
    return found < s.kernel ? std::max<int64_t>(found, -1) : -1;
}

// The channels on one side in parts that differ in the points that they need: the corners of a map of stride
// 2, or all of them. At point p, those of a part begin at `begin`, -1 for none, and there are `count` in all.
struct Parts {
    int64_t wide, count[POINTS] = {}, begin[POINTS][4];
    bool whole = true;  // all channels have all points
    // back: the kernel is turned by half a circle
    Parts(const Sizes& s, int64_t channels, bool corners, bool back)
        : wide(corners ? channels / 4 : channels) {
        const auto zero = [&](int point, int corner) {
            return (point == 0 && tap(s, back ? 2 : 0, corner) < 0) ||
                   (point == IN - 1 && tap(s, back ? 0 : 2, corner) < 0);
        };
        for (int p = 0; p < POINTS; p++) {
            const int i = p / IN, j = p % IN;
            for (int part = 0; part * wide < channels; part++) {
                // of pixels that are equal by twos, the third row and column are 0
                const bool none = (s.doubled && (i == 2 || j == 2)) ||
                                  (corners && (zero(i, part / 2) || zero(j, part % 2)));
                begin[p][part] = none ? -1 : count[p];
                count[p] += none ? 0 : wide;
                whole &= !none;
            }
        }
    }
    // The panel of channel k, within its part.
    Panel panel(int64_t k) const {
        Panel found(k % wide, wide);
        found.first += k / wide * wide;
        return found;
    }
};

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

// Asks for what the tile to the right takes: the cache's own guesses end with each row of a tile. Where there
// is no such tile, nothing happens.
inline void ahead(const float* p) { __builtin_prefetch(p, 0); }
inline void ahead(float* p) { __builtin_prefetch(p, 1); }

// v: a block; its rows are those of `rows`. WHOLE: all channels have all points.
template <bool WHOLE>
void transform_input(const Maps& s, const Tile& tile, const Counts& rows, const Parts& parts,
                     const Layout& in, const float* x, const float* zeros, float* v, Block block) {
    const float* from[IN][IN];
    UNROLLED
    for (int i = 0; i < IN; i++)
        UNROLLED
        for (int j = 0; j < IN; j++) {
            int64_t y = tile.top + i - 1, z = tile.left + j - 1;
            bool inside = y >= 0 && y < s.height && z >= 0 && z < s.width;
            const int64_t row = (tile.image * s.height + y) >> s.doubled;
            from[i][j] = inside ? x + row * in.row + (z >> s.doubled) * in.pixel : zeros;
        }
    float* to[KINDS];
    for (int k = 0; k < KINDS; k++) to[k] = v + rows.of[k] * block.row;
    const int64_t pixels = OUT >> s.doubled;
    const float* next = from[2][2] + pixels * in.pixel;
    for (int64_t first = 0; first < s.in; first += in.quarter)  // a corner, or all channels
        for (int64_t c = 0; c < in.quarter; c += LANES) {
            const int64_t at = in.at(first) + c;
            for (int i = 0; i < pixels; i++)
                for (int j = 0; j < pixels; j++) ahead(next + i * in.row + j * in.pixel + at);
            alignas(64) Vec half[IN][IN];
            UNROLLED
            for (int j = 0; j < IN; j++) {
                Vec d[IN], r[IN];
                UNROLLED
                for (int i = 0; i < IN; i++) d[i] = load(from[i][j] + at);
                input(d, r);
                UNROLLED
                for (int i = 0; i < IN; i++) half[i][j] = r[i];
            }
            UNROLLED
            for (int i = 0; i < IN; i++) {
                Vec r[IN];
                input(half[i], r);
                UNROLLED
                for (int j = 0; j < IN; j++) {
                    const int p = i * IN + j;
                    const int64_t begin = WHOLE ? first : parts.begin[p][first / in.quarter];
                    if (begin >= 0) store(to[kind(p)] + p * block.point + begin + c, r[j]);
                }
            }
        }
}

// The channels of a panel of the result; m, a block, has only them.
template <bool WHOLE>
void transform_output(const Maps& s, const Tile& tile, const Counts& rows, const Parts& parts,
                      const Layout& out, const float* m, Block block, const float* bias, const float* plus,
                      Panel panel, float* y) {
    const int64_t corner = (tile.image * s.height + tile.top) * out.row + tile.left * out.pixel;
    const int64_t part = WHOLE ? 0 : panel.first / parts.wide;
    const float* from[KINDS];
    for (int k = 0; k < KINDS; k++) from[k] = m + rows.of[k] * block.row;
    for (int64_t k = 0; k < panel.wide; k += LANES) {
        alignas(64) Vec half[OUT][IN];
        UNROLLED
        for (int j = 0; j < IN; j++) {
            Vec d[IN], r[OUT];
            UNROLLED
            for (int i = 0; i < IN; i++) {
                const int p = i * IN + j;
                const bool none = !WHOLE && parts.begin[p][part] < 0;
                d[i] = none ? Vec{} : load(from[kind(p)] + p * block.point + k);
            }
            output(d, r);
            UNROLLED
            for (int i = 0; i < OUT; i++) half[i][j] = r[i];
        }
        const int64_t begin = corner + out.at(panel.first + k);
        for (int i = 0; i < tile.rows; i++)
            for (int j = OUT; j < 2 * OUT; j++) {
                ahead(y + begin + i * out.row + j * out.pixel);
                if (plus) ahead(plus + begin + i * out.row + j * out.pixel);
            }
        Vec add = bias ? load(bias + panel.first + k) : Vec{};
        for (int i = 0; i < tile.rows; i++) {
            Vec r[OUT];
            output(half[i], r);
            for (int j = 0; j < tile.columns; j++) {
                const int64_t at = begin + i * out.row + j * out.pixel;
                store(y + at, plus ? r[j] + add + load(plus + at) : r[j] + add);
            }
        }
    }
}

// Adds the sums over pixels to `total` (K).
void transform_gradient(const Maps& s, const Tile& tile, const Counts& rows, const Layout& out,
                        const float* dy, const float* zeros, float* z, Block block, float* total) {
    const float* from[OUT][OUT];
    UNROLLED
    for (int i = 0; i < OUT; i++)
        UNROLLED
        for (int j = 0; j < OUT; j++) {
            const int64_t row = tile.image * s.height + tile.top + i;
            from[i][j] = i < tile.rows && j < tile.columns
                             ? dy + row * out.row + (tile.left + j) * out.pixel
                             : zeros;
        }
    float* to[KINDS];
    for (int k = 0; k < KINDS; k++) to[k] = z + rows.of[k] * block.row;
    for (int64_t k = 0; k < s.out; k += LANES) {
        const int64_t at = out.at(k);
        alignas(64) Vec half[IN][OUT];
        Vec sum = load(total + k);
        UNROLLED
        for (int j = 0; j < OUT; j++) {
            Vec d[OUT], r[IN];
            UNROLLED
            for (int i = 0; i < OUT; i++) d[i] = load(from[i][j] + at);
            sum += d[0] + d[1] + (d[2] + d[3]);
            output_back(d, r);
            UNROLLED
            for (int i = 0; i < IN; i++) half[i][j] = r[i];
        }
        store(total + k, sum);
        UNROLLED
        for (int i = 0; i < IN; i++) {
            Vec r[IN];
            output_back(half[i], r);
            UNROLLED
            for (int j = 0; j < IN; j++) {
                const int p = i * IN + j;
                store(to[kind(p)] + p * block.point + k, r[j]);
            }
        }
    }
}

// Which of a layer's channels is the one counted k of n. With a stride of 2, all corners share their channels.
int64_t original(const Sizes& s, int64_t k, int64_t n, bool shuffled) {
    if (!shuffled) return k;
    return s.strided ? k % (n / 4) : k % (n / 4) * 4 + k / (n / 4);
}

// Weights (K, C, y, x) in memory, or their gradient: the strides, in floats.
struct Strides {
    int64_t k, c, y, x;
};

// Where those of a convolution's channels c and k are: floats from the first weight, and from one k to the
// next.
struct Place {
    int64_t at, step, corner;
    Place(const Sizes& s, const Strides& w, int64_t c, int64_t k)
        : at(original(s, c, s.in, s.shuffled_in) * w.c + original(s, k, s.out, s.shuffled_out) * w.k),
          step(s.shuffled_out && !s.strided ? 4 * w.k : w.k),
          corner(!s.strided ? 0 : s.shuffled_in ? c / (s.in / 4) : k / (s.out / 4)) {}
};

// The first n floats, of those that lie `step` apart, with 0 behind them.
Vec strided(const float* from, int64_t step, int64_t n) {
    if (n == LANES && step == 1) return load(from);
    Vec v = {};
#if defined(__AVX512F__)
    if (n == LANES && step < 1 << 26) {
        const __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        return _mm512_i32gather_ps(_mm512_mullo_epi32(places, _mm512_set1_epi32(step)), from, 4);
    }
#endif
    for (int lane = 0; lane < n; lane++) v[lane] = from[lane * step];
    return v;
}

}  // namespace

extern "C" {

// u (36 C K floats: panel by panel, point by point) of the weights w (K, C, y, x), their strides in floats.
// With `back`, w is that of the convolution whose gradient of x this one is: (C, K, y, x), turned by half a
// circle. real: the first channels of w's result, the others, up to a multiple of 16, being 0.
void winograd_weights(const float* w, const Sizes* sizes, int64_t stride_k, int64_t stride_c,
                      int64_t stride_y, int64_t stride_x, int64_t real, int back, float* u, int threads) {
    const Sizes& s = *sizes;
    if (back) std::swap(stride_k, stride_c);
    const Strides strides{stride_k, stride_c, stride_y, stride_x};
    const int64_t real_in = back ? real : s.in, real_out = back ? s.out : real;
    const Parts in(s, s.in, s.strided && s.shuffled_in, back);
    const Parts out(s, s.out, s.strided && s.shuffled_out, back);
#pragma omp parallel for num_threads(threads)
    for (int64_t k = 0; k < s.out; k += LANES) {
        const auto [first, wide] = out.panel(k);
        for (int64_t c = 0; c < s.in; c++) {
            const Place place(s, strides, c, k);
            const int64_t lanes = c < real_in ? std::clamp<int64_t>(real_out - k, 0, LANES) : 0;
            alignas(64) Vec half[IN][3];
            UNROLLED
            for (int j = 0; j < 3; j++) {
                Vec g[3], r[IN];
                UNROLLED
                for (int i = 0; i < 3; i++) {
                    const int64_t y = tap(s, back ? 2 - i : i, place.corner / 2);
                    const int64_t x = tap(s, back ? 2 - j : j, place.corner % 2);
                    const float* from = w + place.at + y * stride_y + x * stride_x;
                    g[i] = y < 0 || x < 0 ? Vec{} : strided(from, place.step, lanes);
                }
                kernel(g, r);
                UNROLLED
                for (int i = 0; i < IN; i++) half[i][j] = r[i];
            }
            float* panel = u + POINTS * first * s.in + k - first;
            UNROLLED
            for (int i = 0; i < IN; i++) {
                Vec r[IN];
                kernel(half[i], r);
                UNROLLED
                for (int j = 0; j < IN; j++) {
                    const int p = i * IN + j;
                    const int64_t begin = in.begin[p][c / in.wide];
                    if (begin >= 0) store(panel + (p * s.in + begin + c % in.wide) * wide, r[j]);
                }
            }
        }
    }
}

// y (N, H, W, K) = x (N, H, W, C) * u + bias (K) + plus (N, H, W, K), the last two perhaps null, in blocks of
// `most` tiles. The panels of a block are shared among `sharers` threads: few tiles are done soon, and what
// takes time is reading the weights. back: as for the weights. 0, or 1: no memory.
int winograd(const float* x, const float* u, const float* bias, const float* plus, float* y,
             const Sizes* sizes, int back, int64_t most, int sharers, int threads) {
    const Maps s(*sizes);
    const Layout layout_x(s.width >> s.doubled, s.in, s.shuffled_in);
    const Layout layout_y(s.width, s.out, s.shuffled_out);
    const Parts in(s, s.in, s.strided && s.shuffled_in, back);
    const Parts out(s, s.out, s.strided && s.shuffled_out, back);
    const auto into = in.whole ? transform_input<true> : transform_input<false>;
    const auto from = out.whole ? transform_output<true> : transform_output<false>;
    const int64_t blocks = s.blocks(most), vectors = s.out / LANES;
    const Block block_v(most, s.in), block_m(most, PANEL);
    Shares shares(blocks * sharers, threads);
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
        }
        shares.each([&](int64_t item) {
            if (!zeros) return;
            const int64_t first = item / sharers * most, last = std::min(s.tiles(), first + most);
            Counts rows;
            for (int64_t t = first; t < last; t++) {
                const Tile tile(s, t);
                into(s, tile, rows, in, layout_x, x, zeros, v, block_v);
                rows.add(tile);
            }
            // the panels that begin in this thread's share of the channels
            const int64_t begin = vectors * (item % sharers) / sharers * LANES;
            const int64_t end = vectors * (item % sharers + 1) / sharers * LANES;
            for (int64_t k = 0; k < end;) {
                const Panel panel = out.panel(k);
                if (k < begin) {
                    k += panel.wide;
                    continue;
                }
                for (int p = 0; p < POINTS; p++)
                    if (out.begin[p][k / out.wide] >= 0)
                        multiply_panel(panel.wide, v + p * block_v.point, block_v.row, rows.of[kind(p)],
                                       u + (POINTS * k + p * panel.wide) * s.in, in.count[p],
                                       m + p * block_m.point, block_m.row);
                Counts done;
                for (int64_t t = first; t < last; t++) {
                    const Tile tile(s, t);
                    from(s, tile, done, out, layout_y, m, block_m, bias, plus, panel, y);
                    done.add(tile);
                }
                k += panel.wide;
            }
        });
    }
    return failed;
}

// dw, its strides in floats, for the first `real` channels, and db (K) of x (N, H, W, C) and dy (N, H, W, K),
// in blocks of `most` tiles. sums: scratch of threads * (36 C + 1) K floats; thread by thread, so that the
// result is always the same. 0, or 1: no memory.
int winograd_weights_back(const float* x, const float* dy, float* dw, float* db, const Sizes* sizes,
                          int64_t stride_k, int64_t stride_c, int64_t stride_y, int64_t stride_x,
                          int64_t real, float* sums, int64_t most, int threads) {
    const Maps s(*sizes);
    const Strides strides{stride_k, stride_c, stride_y, stride_x};
    const Layout layout_x(s.width >> s.doubled, s.in, s.shuffled_in);
    const Layout layout_y(s.width, s.out, s.shuffled_out);
    const Parts in(s, s.in, s.strided, false);
    const auto into = in.whole ? transform_input<true> : transform_input<false>;
    const int64_t blocks = s.blocks(most), weights = POINTS * s.in * s.out, size = weights + s.out;
    const Block block_v(most, s.in), block_z(most, s.out);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        static thread_local Scratch scratch;
        const int64_t wide = std::max(layout_x.reach(), layout_y.reach());
        float* zeros = scratch.of(wide + block_v.size() + block_z.size() + s.out, failed);
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
                std::fill(total, total + s.out, 0.0f);
                Counts rows;
                for (int64_t t = b * most; t < std::min(s.tiles(), (b + 1) * most); t++) {
                    const Tile tile(s, t);
                    into(s, tile, rows, in, layout_x, x, zeros, v, block_v);
                    transform_gradient(s, tile, rows, layout_y, dy, zeros, z, block_z, total);
                    rows.add(tile);
                }
                for (int64_t k = 0; k < s.out; k++) u[weights + k] += total[k];
                for (int p = 0; p < POINTS; p++)
                    add_all_products(v + p * block_v.point, block_v.row, in.count[p], z + p * block_z.point,
                                     block_z.row, s.out, rows.of[kind(p)], u + p * s.in * s.out);
            }
        }
#pragma omp for
        for (int64_t k = 0; k < s.out; k += LANES) {
            const int64_t lanes = std::clamp<int64_t>(real - k, 0, LANES);
            Vec bias = {};
            for (int part = 0; part < threads; part++) bias += load(sums + part * size + weights + k);
            const Strides one{1, 0, 0, 0};
            const Place place(s, one, 0, k);
            for (int lane = 0; lane < LANES; lane++) db[place.at + lane * place.step] = bias[lane];
            for (int64_t c = 0; c < s.in; c++) {
                const Place place(s, strides, c, k);
                alignas(64) Vec half[3][IN];
                UNROLLED
                for (int j = 0; j < IN; j++) {
                    Vec u[IN], r[3];
                    UNROLLED
                    for (int i = 0; i < IN; i++) {
                        const int p = i * IN + j;
                        const int64_t begin = in.begin[p][c / in.wide];
                        u[i] = Vec{};
                        if (begin < 0) continue;
                        const float* from = sums + (p * s.in + begin + c % in.wide) * s.out + k;
                        for (int part = 0; part < threads; part++) u[i] += load(from + part * size);
                    }
                    kernel_back(u, r);
                    UNROLLED
                    for (int i = 0; i < 3; i++) half[i][j] = r[i];
                }
                UNROLLED
                for (int i = 0; i < 3; i++) {
                    Vec r[3];
                    kernel_back(half[i], r);
                    const int64_t y = tap(s, i, place.corner / 2);
                    UNROLLED
                    for (int j = 0; j < 3; j++) {
                        const int64_t x = tap(s, j, place.corner % 2);
                        if (y < 0 || x < 0) continue;
                        float* to = dw + place.at + y * stride_y + x * stride_x;
                        for (int lane = 0; lane < lanes; lane++) to[lane * place.step] = r[j][lane];
                    }
                }
            }
        }
    }
    return failed;
}
}
