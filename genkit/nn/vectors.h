// Vectors of floats as wide as the machine's registers, by the vector extension of GCC and Clang.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if defined(__AVX512F__)
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

static inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
static inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }

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
    ~Scratch() { free(data); }
};
