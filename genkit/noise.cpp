// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). The interface is in
// noise.py.

#include <cstdint>

extern "C" {

// out (rows, 4 blocks): for each row the 32-bit words, as int64, of the counters (block, index low and high,
// stream).
void philox(uint64_t seed, uint32_t stream, const int64_t* index, int64_t rows, int64_t blocks, int64_t* out,
            int threads) {
#pragma omp parallel for collapse(2) num_threads(threads) if (rows * blocks > 4096)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t block = 0; block < blocks; block++) {
            uint32_t c0 = block, c1 = index[row], c2 = (uint64_t)index[row] >> 32, c3 = stream;
            uint32_t k0 = seed, k1 = seed >> 32;
            for (int round = 0; round < 10; round++) {
                const uint64_t a = 0xD2511F53ull * c0, b = 0xCD9E8D57ull * c2;
                c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
                c1 = (uint32_t)b;
                c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
                c3 = (uint32_t)a;
                k0 += 0x9E3779B9u;
                k1 += 0xBB67AE85u;
            }
            int64_t* to = out + 4 * (row * blocks + block);
            to[0] = c0, to[1] = c1, to[2] = c2, to[3] = c3;
        }
}
}
