// Group normalisation and SiLU of channels-last maps, an image at a time: what one pass over the pixels
// finds, the next one uses while the image is in the core's cache. The formulas are those of norm.py.
// Channels are a multiple of 16.

#include <algorithm>

#include "vectors.h"

namespace {

constexpr int WIDE = 4;           // vectors of channels that a pass takes at a time
constexpr int64_t PART = 64;      // pixels that are summed by themselves first, for exactness
constexpr double CANCELS = 1e-3;  // as in norm.py

Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

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

}  // namespace

extern "C" {

// y (N, P, C) = silu(norm(x + added) * (1 + scale) + shift), the SiLU only to `activate`; added, or scale and
// shift (N, C) may be null. Also channel, gain and offset (N, C), mean and rstd (N, G): `_Found` of norm.py.
void normalise(const float* x, const float* weight, const float* bias, const float* added, const float* scale,
               const float* shift, double eps, int64_t images, int64_t pixels, int64_t channels,
               int64_t groups, int activate, float* y, float* channel, float* mean, float* rstd, float* gain,
               float* offset, int threads) {
    const int64_t wide = channels / groups;
#pragma omp parallel for num_threads(threads)
    for (int64_t n = 0; n < images; n++) {
        const float *from = x + n * pixels * channels, *a = added ? added + n * channels : nullptr;
        float *to = y + n * pixels * channels, *sums = channel + n * channels;
        float *g = gain + n * channels,
              *o = offset + n * channels;  // the squares lie in g until they are used
        sum(pixels, channels, sums, g, [&](int64_t p, int64_t c, Vec& plain, Vec& square) {
            const Vec v = load(from + p * channels + c);
            plain += v;
            square += v * v;
        });
        for (int64_t group = 0; group < groups; group++) {
            const int64_t begin = group * wide, end = begin + wide;
            double m = 0, q = 0;
            for (int64_t c = begin; c < end; c++) {
                const double s = sums[c] / static_cast<double>(pixels), b = a ? a[c] : 0;
                m += s + b;
                q += g[c] / static_cast<double>(pixels) + b * (2 * s + b);
            }
            m /= wide, q /= wide;
            double variance = q - m * m;
            if (variance < CANCELS * q) {  // summed again about the mean
                variance = 0;
                for (int64_t c = begin; c < end; c++) {
                    const float centre = static_cast<float>(m - (a ? a[c] : 0));
                    double square = 0;
                    for (int64_t p = 0; p < pixels; p++) {
                        const double d = from[p * channels + c] - centre;
                        square += d * d;
                    }
                    variance += square / pixels;
                }
                variance /= wide;
            }
            mean[n * groups + group] = static_cast<float>(m);
            rstd[n * groups + group] = static_cast<float>(1 / __builtin_sqrt(variance + eps));
        }
        for (int64_t c = 0; c < channels; c++) {
            const double r = rstd[n * groups + c / wide], m = mean[n * groups + c / wide];
            double by = r * weight[c], plus = bias[c] - m * by;
            if (scale) {
                const double s = 1.0 + scale[n * channels + c];
                by *= s, plus = plus * s + shift[n * channels + c];
            }
            if (a) plus += by * a[c];
            g[c] = static_cast<float>(by), o[c] = static_cast<float>(plus);
            sums[c] /= pixels;
        }
        for (int64_t p = 0; p < pixels; p++)
            for (int64_t c = 0; c < channels; c += LANES) {
                Vec v = load(from + p * channels + c) * load(g + c) + load(o + c);
                if (activate) v *= sigmoid(v);
                store(to + p * channels + c, v);
            }
    }
}

// dx (N, P, C) of the gradient dy, and the sums over pixels, (N, C): `_Sums` of norm.py. level (N, C):
// scratch.
void normalise_back(const float* x, const float* dy, const float* weight, const float* added,
                    const float* scale, int64_t images, int64_t pixels, int64_t channels, int64_t groups,
                    int activate, const float* channel, const float* mean, const float* rstd,
                    const float* gain, const float* offset, float* dx, float* plain, float* times,
                    float* total, float* level, int threads) {
    const int64_t wide = channels / groups;
    const double count = static_cast<double>(pixels * wide);
#pragma omp parallel for num_threads(threads)
    for (int64_t n = 0; n < images; n++) {
        const int64_t image = n * pixels * channels, row = n * channels;
        const float *from = x + image, *above = dy + image, *g = gain + row, *o = offset + row;
        const float* a = added ? added + row : nullptr;
        float *to = dx + image, *t = total + row;
        sum(pixels, channels, plain + row, times + row, [&](int64_t p, int64_t c, Vec& sums, Vec& products) {
            const Vec v = load(from + p * channels + c);
            Vec d = load(above + p * channels + c);
            if (activate) {
                const Vec u = v * load(g + c) + load(o + c), s = sigmoid(u);
                d *= s * (1.0f + u * (1.0f - s));
                store(to + p * channels + c, d);  // waits there for the second pass
            }
            sums += d;
            products += d * v;
        });
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
            const double slope = (m * dys - dyhs) / count * r * r * r, shift = -dys / count * r - slope * m;
            for (int64_t c = begin; c < end; c++) {
                t[c] = static_cast<float>(slope);
                levels[c] = static_cast<float>(shift + (a ? slope * a[c] : 0));
            }
        }
        const float* waiting = activate ? to : above;
        for (int64_t p = 0; p < pixels; p++)
            for (int64_t c = 0; c < channels; c += LANES) {
                const int64_t i = p * channels + c;
                store(to + i,
                      load(waiting + i) * load(g + c) + load(from + i) * load(t + c) + load(levels + c));
            }
        for (int64_t c = 0; c < channels; c++)
            t[c] = g[c] * plain[row + c] + pixels * (t[c] * channel[row + c] + levels[c]);
    }
}
}
