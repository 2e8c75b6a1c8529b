// A normal of every unit, sampled, against the standard one. The interface is in gaussian.py.

#include <algorithm>

#include "vectors.h"

namespace {

// Log variances within the bounds that gaussian.py has.
Vec clamped(Vec v) {
    const Vec low = Vec{} - 30.0f, high = Vec{} + 20.0f;
    return v < low ? low : v > high ? high : v;
}

// The first of n floats from p on, as many as a vector has, with 0 behind them.
Vec some(const float* p, int64_t n) {
    if (n >= LANES) return load(p);
    alignas(64) float all[LANES] = {};
    std::copy(p, p + n, all);
    return load(all);
}

// The first n numbers of v, at most all.
void put(float* p, Vec v, int64_t n) {
    if (n >= LANES) return store(p, v);
    alignas(64) float all[LANES];
    store(all, v);
    std::copy(all, all + n, p);
}

}  // namespace

extern "C" {

// z, kl (B, P, C) and penalty (B), the sum of kl, of h (B, P, 2 C): means, then log variances; and noise
// (B, P, C).
void gaussian(const float* h, const float* noise, int64_t images, int64_t pixels, int64_t channels, float* z,
              float* kl, float* penalty, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t b = 0; b < images; b++) {
        Vec sums = {};
        for (int64_t row = b * pixels; row < (b + 1) * pixels; row++)
            for (int64_t c = 0; c < channels; c += LANES) {
                const int64_t at = row * channels + c, left = channels - c;
                const Vec mean = some(h + 2 * row * channels + c, left);
                const Vec log_var = clamped(some(h + (2 * row + 1) * channels + c, left));
                const Vec std = exponential(0.5f * log_var);
                const Vec nats = 0.5f * (mean * mean + std * std - log_var - 1.0f);  // 0 behind the last
                sums += nats;
                put(z + at, mean + std * some(noise + at, left), left);
                put(kl + at, nats, left);
            }
        float sum = 0;
        for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
        penalty[b] = sum;
    }
}

// dh of the gradients of z and kl (B, P, C) and of the penalty (B), each of which may be null.
void gaussian_back(const float* h, const float* noise, int64_t images, int64_t pixels, int64_t channels,
                   const float* dz, const float* dkl, const float* dpenalty, float* dh, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t b = 0; b < images; b++)
        for (int64_t row = b * pixels; row < (b + 1) * pixels; row++)
            for (int64_t c = 0; c < channels; c += LANES) {
                const int64_t at = row * channels + c, left = channels - c;
                const int64_t means = 2 * row * channels + c, variances = means + channels;
                const Vec mean = some(h + means, left), log_var = some(h + variances, left);
                const Vec used = clamped(log_var), std = exponential(0.5f * used);
                const Vec by_z = dz ? some(dz + at, left) : Vec{};
                const Vec by_kl = (dkl ? some(dkl + at, left) : Vec{}) + (dpenalty ? dpenalty[b] : 0.0f);
                put(dh + means, by_z + by_kl * mean, left);
                const Vec by_std = by_z * some(noise + at, left);
                const Vec by_log_var = 0.5f * (by_std * std + by_kl * (std * std - 1.0f));
                put(dh + variances, used == log_var ? by_log_var : Vec{}, left);
            }
}
}
