// Coins: -log p of pixels, as brightnesses in [0, 1], of which each is the mean of a coin with a logit. One
// pass gives the sum and its gradient. The interface is in bernoulli.py.

#include <algorithm>

#include "../nn/vectors.h"

namespace {

constexpr int64_t CHUNK = 4096;  // numbers that are summed in single precision

// log((1 + s) / (1 - s)) = 2 artanh(s) for s in [0, 1/3]: below 1e-7 relative.
Vec log_of_odds(Vec s) {
    const Vec square = s * s;
    Vec p = Vec{} + 1.0f / 13;
    p = p * square + 1.0f / 11;
    p = p * square + 1.0f / 9;
    p = p * square + 1.0f / 7;
    p = p * square + 1.0f / 5;
    p = p * square + 1.0f / 3;
    return 2 * (p * square * s + s);
}

// The nats of one vector; its gradient in `slope`.
Vec nats(Vec logit, Vec x, Vec& slope) {
    const Vec target = 0.5f * x + 0.5f, one = Vec{} + 1.0f;
    const auto negative = logit < 0;
    const Vec e = exponential(negative ? logit : -logit);  // NaN stays
    // one division for both: 1 / (1 + e), the sigmoid, and e / (2 + e), of whose odds log(1 + e) is
    const Vec more = 1.0f + e, most = 2.0f + e, inverse = 1.0f / (more * most);
    slope = (negative ? e : one) * most * inverse - target;
    return (negative ? Vec{} : logit) - target * logit + log_of_odds(e * more * inverse);
}

// The first n numbers of v, with 0 behind them.
Vec first(Vec v, int64_t n) {
    if (n >= LANES) return v;
    alignas(64) float all[LANES];
    store(all, v);
    return load_some(all, n);
}

}  // namespace

extern "C" {

// How many sums `bernoulli` makes of n numbers.
int64_t bernoulli_sums(int64_t n) { return (n + CHUNK - 1) / CHUNK; }

// sums: the nats of n pixels x in [-1, 1] by their logits, chunk by chunk. slope (n), perhaps null: `by`
// times the gradient by the logits.
void bernoulli(const float* logits, const float* x, int64_t n, float by, float* slope, double* sums,
               int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t chunk = 0; chunk < bernoulli_sums(n); chunk++) {
        const int64_t end = std::min(n, (chunk + 1) * CHUNK);
        Vec sum = {}, gradient;
        for (int64_t i = chunk * CHUNK; i < end; i += LANES) {
            const int64_t left = end - i;
            const Vec found = nats(load_some(logits + i, left), load_some(x + i, left), gradient);
            sum += first(found, left);
            if (slope) store_some(slope + i, by * gradient, left);
        }
        double total = 0;
        for (int lane = 0; lane < LANES; lane++) total += sum[lane];
        sums[chunk] = total;
    }
}
}
