// A normal of every unit, sampled, against the standard one. The interface is in gaussian.py.

#include <algorithm>

#include "../nn/vectors.h"

namespace {

// As many units of an image as a vector has, fewer at its end. What has one number for each of them lies as
// they are counted; h has two, by pixels: a pixel's means, then its log variances.
struct Units {
    int64_t count, channels;
    int64_t mean[LANES];  // where that of each lies

    Units(int64_t first, int64_t units, int64_t channels)
        : count(std::min<int64_t>(LANES, units - first)), channels(channels) {
        int64_t c = first % channels, at = 2 * (first - c);
        for (int64_t i = 0; i < count; i++) {
            mean[i] = at + c;
            if (++c == channels) c = 0, at += 2 * channels;
        }
    }

    void read(const float* h, Vec& means, Vec& log_vars) const {
        alignas(64) float all[2][LANES] = {};
        for (int64_t i = 0; i < count; i++) all[0][i] = h[mean[i]], all[1][i] = h[mean[i] + channels];
        means = load(all[0]), log_vars = load(all[1]);
    }

    void write(float* h, Vec means, Vec log_vars) const {
        alignas(64) float all[2][LANES];
        store(all[0], means), store(all[1], log_vars);
        for (int64_t i = 0; i < count; i++) h[mean[i]] = all[0][i], h[mean[i] + channels] = all[1][i];
    }
};

// Log variances within the bounds of gaussian.py.
Vec clamped(Vec v) {
    const Vec low = Vec{} - 30.0f, high = Vec{} + 20.0f;
    return v < low ? low : v > high ? high : v;
}

}  // namespace

extern "C" {

// z, kl (B, P, C) and penalty (B), the sum of kl, of h (B, P, 2 C): means, then log variances; and noise
// (B, P, C).
void gaussian(const float* h, const float* noise, int64_t images, int64_t pixels, int64_t channels, float* z,
              float* kl, float* penalty, int threads) {
    const int64_t units = pixels * channels;
#pragma omp parallel for num_threads(threads)
    for (int64_t b = 0; b < images; b++) {
        Vec sums = {};
        for (int64_t i = 0; i < units; i += LANES) {
            const Units group(i, units, channels);
            const int64_t at = b * units + i, n = group.count;
            Vec mean, log_var;
            group.read(h + 2 * b * units, mean, log_var);
            log_var = clamped(log_var);
            const Vec sigma = exponential(0.5f * log_var);
            const Vec nats = 0.5f * (mean * mean + sigma * sigma - log_var - 1.0f);  // 0 behind the last
            sums += nats;
            store_some(z + at, mean + sigma * load_some(noise + at, n), n);
            store_some(kl + at, nats, n);
        }
        float sum = 0;
        for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
        penalty[b] = sum;
    }
}

// dh of the gradients of z and kl (B, P, C) and of the penalty (B), each of which may be null.
void gaussian_back(const float* h, const float* noise, int64_t images, int64_t pixels, int64_t channels,
                   const float* dz, const float* dkl, const float* dpenalty, float* dh, int threads) {
    const int64_t units = pixels * channels;
#pragma omp parallel for num_threads(threads)
    for (int64_t b = 0; b < images; b++)
        for (int64_t i = 0; i < units; i += LANES) {
            const Units group(i, units, channels);
            const int64_t at = b * units + i, n = group.count;
            Vec mean, log_var;
            group.read(h + 2 * b * units, mean, log_var);
            const Vec used = clamped(log_var), sigma = exponential(0.5f * used);
            const Vec by_z = dz ? load_some(dz + at, n) : Vec{};
            const Vec by_kl = (dkl ? load_some(dkl + at, n) : Vec{}) + (dpenalty ? dpenalty[b] : 0.0f);
            const Vec by_sigma = by_z * load_some(noise + at, n);
            const Vec by_log_var = 0.5f * (by_sigma * sigma + by_kl * (sigma * sigma - 1.0f));
            group.write(dh + 2 * b * units, by_z + by_kl * mean, used == log_var ? by_log_var : Vec{});
        }
}
}
