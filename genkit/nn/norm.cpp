// Group normalisation and SiLU of channels-last maps, an image at a time: what one pass over the pixels
// finds, the next one uses while the image is in the core's cache. The formulas are those of norm.py.
// Channels are a multiple of 16.

#include <algorithm>

#include "shares.h"
#include "vectors.h"

namespace {

constexpr int WIDE = 4;           // vectors of channels that a pass takes at a time
constexpr int64_t PART = 64;      // pixels that are summed by themselves first, for exactness
constexpr double CANCELS = 1e-3;  // as in norm.py

Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }
Vec silu(Vec x) { return x / (1.0f + exponential(-x)); }

// Asks for a number of the next image while this one is worked on; behind the last image nothing happens.
inline void soon(const float* p) { __builtin_prefetch(p, 0, 2); }

// Channels [begin, begin + wide) of an image, which lie together: (P, wide).
template <class Float>
struct Part {
    Float* data;
    int64_t begin, wide;
};

// An image of a map whose first channels are in x (N, P, split), and the others, if any, in `more`.
template <class Float>
struct Image {
    Part<Float> parts[2];
    Image(Float* x, Float* more, int64_t n, int64_t pixels, int64_t channels, int64_t split)
        : parts{{x + n * pixels * split, 0, split},
                {more ? more + n * pixels * (channels - split) : nullptr, split, channels - split}} {}

    const Part<Float>& of(int64_t channel) const { return parts[channel >= parts[1].begin]; }
};

// Sums over the pixels of f(pixel, channel), which gives two vectors, into `first` and `second` (C floats).
template <class F>
void sum(int64_t pixels, int64_t channels, float* first, float* second, F f) {
    for (int64_t c = 0; c < channels; c += WIDE * LANES) {
        const int n = std::min<int64_t>(WIDE, (channels - c) / LANES);
        Vec total[2][WIDE] = {};
        for (int64_t begin = 0; begin < pixels; begin += PART) {
            const int64_t end = std::min(begin + PART, pixels);
            Vec part[2][WIDE] = {};
            if (n == WIDE)  // the usual case, unrolled
                for (int64_t p = begin; p < end; p++)
                    for (int i = 0; i < WIDE; i++) f(p, c + i * LANES, part[0][i], part[1][i]);
            else
                for (int i = 0; i < n; i++)
                    for (int64_t p = begin; p < end; p++) f(p, c + i * LANES, part[0][i], part[1][i]);
            for (int i = 0; i < n; i++) total[0][i] += part[0][i], total[1][i] += part[1][i];
        }
        for (int i = 0; i < n; i++) {
            store(first + c + i * LANES, total[0][i]);
            store(second + c + i * LANES, total[1][i]);
        }
    }
}

// What the forward pass found, in one piece: mean of each channel (N, C) without `added`; gain and offset
// (N, C) of the affine map from x to the argument of the SiLU; mean and 1 / std of each group (N, G).
template <class Float>
struct Found {
    Float *channel, *gain, *offset, *mean, *rstd;
    Found(Float* p, int64_t images, int64_t channels, int64_t groups)
        : channel(p),
          gain(channel + images * channels),
          offset(gain + images * channels),
          mean(offset + images * channels),
          rstd(mean + images * groups) {}
};

}  // namespace

extern "C" {

// y (N, P, C) = silu(norm(x + added) * (1 + scale) + shift), the SiLU only to `activate`; added, or scale and
// shift (N, C) may be null. The channels of x from `split` on lie in `more`. found: `Found`.
void normalise(const float* x, const float* more, const float* weight, const float* bias, const float* added,
               const float* scale, const float* shift, double eps, int64_t images, int64_t pixels,
               int64_t channels, int64_t split, int64_t groups, int activate, float* y, float* found,
               int threads) {
    const int64_t wide = channels / groups;
    const double share = 1.0 / pixels, each = 1.0 / wide;
    const Found<float> known(found, images, channels, groups);
    float *channel = known.channel, *gain = known.gain, *offset = known.offset;
    float *mean = known.mean, *rstd = known.rstd;
    Shares shares(images, threads);
#pragma omp parallel num_threads(threads)
    shares.each([&](int64_t n) {
        const Image<const float> image(x, more, n, pixels, channels, split);
        const float* a = added ? added + n * channels : nullptr;
        float *to = y + n * pixels * channels, *sums = channel + n * channels;
        // the squares lie in g until they are used
        float *g = gain + n * channels, *o = offset + n * channels;
        for (const auto& part : image.parts)
            sum(pixels, part.wide, sums + part.begin, g + part.begin,
                [&](int64_t p, int64_t c, Vec& plain, Vec& square) {
                    const Vec v = load(part.data + p * part.wide + c);
                    plain += v;
                    square += v * v;
                });
        for (int64_t group = 0; group < groups; group++) {
            const int64_t begin = group * wide, end = begin + wide;
            double m = 0, q = 0;
            for (int64_t c = begin; c < end; c++) {
                const double s = sums[c] * share, b = a ? a[c] : 0;
                m += s + b;
                q += g[c] * share + b * (2 * s + b);
            }
            m *= each, q *= each;
            double variance = q - m * m;
            if (variance < CANCELS * q) {  // summed again about the mean
                variance = 0;
                for (int64_t c = begin; c < end; c++) {
                    const auto& part = image.of(c);
                    const float centre = static_cast<float>(m - (a ? a[c] : 0));
                    double square = 0;
                    for (int64_t p = 0; p < pixels; p++) {
                        const double d = part.data[p * part.wide + c - part.begin] - centre;
                        square += d * d;
                    }
                    variance += square * share;
                }
                variance *= each;
            }
            const float centre = static_cast<float>(m);
            const float r = static_cast<float>(1 / __builtin_sqrt(variance + eps));
            mean[n * groups + group] = centre, rstd[n * groups + group] = r;
            for (int64_t c = begin; c < end; c++) {
                double by = static_cast<double>(r) * weight[c], plus = bias[c] - centre * by;
                if (scale) {
                    const double s = 1.0 + scale[n * channels + c];
                    by *= s, plus = plus * s + shift[n * channels + c];
                }
                if (a) plus += by * a[c];
                g[c] = static_cast<float>(by), o[c] = static_cast<float>(plus);
                sums[c] = static_cast<float>(sums[c] * share);
            }
        }
        for (const auto& part : image.parts)
            for (int64_t p = 0; p < pixels; p++)
                for (int64_t i = 0; i < part.wide; i += LANES) {
                    const int64_t c = part.begin + i;
                    soon(part.data + (pixels + p) * part.wide + i);
                    Vec v = load(part.data + p * part.wide + i) * load(g + c) + load(o + c);
                    store(to + p * channels + c, activate ? silu(v) : v);
                }
    });
}

// dx (N, P, C) of the gradient dy, its channels from `split` on in `dmore`; dweight and dbias (C); dscale
// (N, C), where there is a scale; and dadded and dshift (N, C) in any case. Where not null, `plus` is added
// to dx, `plus_more` to dmore. scratch: 3 N C floats.
void normalise_back(const float* x, const float* more, const float* dy, const float* weight,
                    const float* bias, const float* added, const float* scale, int64_t images, int64_t pixels,
                    int64_t channels, int64_t split, int64_t groups, int activate, const float* found,
                    float* dx, float* dmore, float* dweight, float* dbias, float* dadded, float* dscale,
                    float* dshift, float* scratch, const float* plus, const float* plus_more, int threads) {
    const Found<const float> known(found, images, channels, groups);
    const float *channel = known.channel, *gain = known.gain, *offset = known.offset;
    const float *mean = known.mean, *rstd = known.rstd;
    // sums over pixels of the gradient of the affine map's value, of that times (x + added), and of dx
    float *plain = dshift, *times = scratch, *total = dadded;
    float *level = times + images * channels, *biases = level + images * channels;
    const int64_t wide = channels / groups;
    const double share = 1.0 / static_cast<double>(pixels * wide);
    Shares shares(images, threads);
#pragma omp parallel num_threads(threads)
    shares.each([&](int64_t n) {
        const int64_t row = n * channels;
        const Image<const float> image(x, more, n, pixels, channels, split);
        const Image<float> result(dx, dmore, n, pixels, channels, split);
        const float *above = dy + n * pixels * channels, *g = gain + row, *o = offset + row;
        const float* a = added ? added + row : nullptr;
        float* t = total + row;
        for (int i = 0; i < 2; i++) {
            const auto& from = image.parts[i];
            const auto& to = result.parts[i];
            const float *gains = g + from.begin, *offsets = o + from.begin;
            sum(pixels, from.wide, plain + row + from.begin, times + row + from.begin,
                [&](int64_t p, int64_t c, Vec& sums, Vec& products) {
                    const Vec v = load(from.data + p * from.wide + c);
                    Vec d = load(above + p * channels + from.begin + c);
                    if (activate) {
                        const Vec u = v * load(gains + c) + load(offsets + c), s = sigmoid(u);
                        d *= s * (1.0f + u * (1.0f - s));
                        store(to.data + p * to.wide + c, d);  // waits there for the second pass
                    }
                    sums += d;
                    products += d * v;
                });
        }
        if (a)
            for (int64_t c = 0; c < channels; c++) times[row + c] += a[c] * plain[row + c];
        // the gradient of x is gain * d + slope * x + level; slope lies in `total` until that is known
        float* levels = level + row;
        for (int64_t group = 0; group < groups; group++) {
            const int64_t begin = group * wide, end = begin + wide;
            double dys = 0, dyhs = 0;
            for (int64_t c = begin; c < end; c++) {
                const double w = weight[c] * (scale ? 1.0 + scale[row + c] : 1.0);
                dys += w * plain[row + c], dyhs += w * times[row + c];
            }
            const double m = mean[n * groups + group], r = rstd[n * groups + group];
            const double slope = (m * dys - dyhs) * share * r * r * r, shift = -dys * share * r - slope * m;
            for (int64_t c = begin; c < end; c++) {
                t[c] = static_cast<float>(slope);
                levels[c] = static_cast<float>(shift + (a ? slope * a[c] : 0));
            }
        }
        for (int i = 0; i < 2; i++) {
            const auto& from = image.parts[i];
            const auto& to = result.parts[i];
            const float* waiting = activate ? to.data : above + from.begin;
            const int64_t step = activate ? to.wide : channels;
            const float* others = i == 0 ? plus : plus_more;
            if (others) others += n * pixels * from.wide;
            for (int64_t p = 0; p < pixels; p++)
                for (int64_t k = 0; k < from.wide; k += LANES) {
                    const int64_t c = from.begin + k;
                    soon(from.data + (pixels + p) * from.wide + k);
                    soon(above + (pixels + p) * channels + c);
                    Vec d = load(waiting + p * step + k) * load(g + c) +
                            load(from.data + p * from.wide + k) * load(t + c) + load(levels + c);
                    if (others) {
                        soon(others + (pixels + p) * from.wide + k);
                        d += load(others + p * from.wide + k);
                    }
                    store(to.data + p * to.wide + k, d);
                }
        }
        for (int64_t c = 0; c < channels; c++)
            t[c] = g[c] * plain[row + c] + pixels * (t[c] * channel[row + c] + levels[c]);
        // the sums times the normalised map instead of x; what they give the weight and the bias waits
        for (int64_t group = 0; group < groups; group++) {
            const float m = mean[n * groups + group], r = rstd[n * groups + group];
            for (int64_t c = group * wide; c < (group + 1) * wide; c++) {
                const float sum = plain[row + c], normed = (times[row + c] - m * sum) * r;
                const float by = scale ? 1 + scale[row + c] : 1;
                if (scale) dscale[row + c] = normed * weight[c] + sum * bias[c];
                times[row + c] = normed * by, biases[row + c] = sum * by;
            }
        }
    });
#pragma omp parallel for num_threads(threads)
    for (int64_t c = 0; c < channels; c += LANES) {
        Vec weights = {}, sums = {};
        for (int64_t n = 0; n < images; n++) {
            weights += load(times + n * channels + c);
            sums += load(biases + n * channels + c);
        }
        store(dweight + c, weights);
        store(dbias + c, sums);
    }
}
}
