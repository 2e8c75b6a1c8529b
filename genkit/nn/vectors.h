// Vectors of floats as wide as the machine's registers, by the vector extension of GCC and Clang.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if defined(__AVX512F__)
#include <immintrin.h>
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__x86_64__)
constexpr int LANES = 4, REGISTERS = 16;
#else
constexpr int LANES = 4, REGISTERS = 32;
#endif

typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// Before a loop of a known length over vectors: unrolled so early that arrays of them become registers.
#if defined(__clang__)
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 16")
#endif

static inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
static inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }

// The first of n floats from p on, as many as a vector has, with 0 behind them.
static inline Vec load_some(const float* p, int64_t n) {
    if (n >= LANES) return load(p);
    alignas(64) float all[LANES] = {};
    std::copy(p, p + n, all);
    return load(all);
}

// The first n numbers of v, at most all.
static inline void store_some(float* p, Vec v, int64_t n) {
    if (n >= LANES) return store(p, v);
    alignas(64) float all[LANES];
    store(all, v);
    std::copy(all, all + n, p);
}

// At least n floats, in an odd number of cache lines: what lies so far apart shares no set of the cache.
static inline int64_t apart(int64_t n) { return ((n + 15) / 16 | 1) * 16; }

#if defined(__AVX512F__)
// Of n floats those that fill no vector.
static inline __mmask16 rest(int64_t n) { return (1u << n % LANES) - 1; }

// The floats [begin, end) of a vector.
static inline __mmask16 between(int64_t begin, int64_t end) { return (1u << end) - (1u << begin); }
#endif

// n floats: 0, those of `from`, and with them added.
static inline void clear(float* to, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(to + i, Vec{});
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to + i, rest(n), Vec{});
#else
    for (; i < n; i++) to[i] = 0;
#endif
}

static inline void copy(const float* from, float* to, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(to + i, load(from + i));
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(to + i, rest(n), _mm512_maskz_loadu_ps(rest(n), from + i));
#else
    for (; i < n; i++) to[i] = from[i];
#endif
}

static inline void add(const float* from, float* to, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(to + i, load(to + i) + load(from + i));
#if defined(__AVX512F__)
    const Vec sum = _mm512_maskz_loadu_ps(rest(n), to + i) + (Vec)_mm512_maskz_loadu_ps(rest(n), from + i);
    _mm512_mask_storeu_ps(to + i, rest(n), sum);
#else
    for (; i < n; i++) to[i] += from[i];
#endif
}

// e^x to 2 units in the last place, after Cephes. Beyond what a float holds: 0 and infinity, or, without
// AVX-512, e^-87 and e^87. NaN stays.
static inline Vec exponential(Vec x) {
    const Vec magic = Vec{} + 12582912.0f;  // 1.5 * 2^23: rounds
#if defined(__AVX512F__)
    x = _mm512_max_ps(Vec{} - 104.0f, _mm512_min_ps(Vec{} + 90.0f, x));
#else
    const Vec high = Vec{} + 87.0f, low = Vec{} - 87.0f;
    x = x > high ? high : x;
    x = x < low ? low : x;
#endif
    const Vec shifted = x * 1.44269504f + magic, n = shifted - magic;
    const Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = Vec{} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * r + 1.0f) * r + 1.0f;
#if defined(__AVX512F__)
    return _mm512_scalef_ps(p, n);
#else
    const Ints power = ((Ints)shifted - (Ints)magic + 127) << 23;
    return p * (Vec)power;
#endif
}

// Memory that a thread keeps from call to call.
struct Scratch {
    float* data = nullptr;
    size_t size = 0;

    // At least so many floats, or null where there is no memory.
    float* of(size_t wanted) {
        if (wanted > size) {
            free(data);
            data = static_cast<float*>(aligned_alloc(64, (wanted * sizeof(float) + 63) / 64 * 64));
            size = data ? wanted : 0;
        }
        return data;
    }

    // The same in a parallel region, where `failed` becomes 1 for want of memory.
    float* of(size_t wanted, int& failed) {
        float* found = of(wanted);
        if (!found) {
#pragma omp atomic write
            failed = 1;
        }
        return found;
    }
    ~Scratch() { free(data); }
};
