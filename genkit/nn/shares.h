// Items of a loop for the threads of a parallel region.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>
#include <vector>

// Each thread has a share of the items, side by side: the same images in every loop over as many, so that
// what it wrote is in its cache when it reads it. When its share is done it takes what others have left.
class Shares {
    struct alignas(64) Share {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
    };
    std::vector<Share> shares;

public:
    Shares(int64_t items, int threads) : shares(threads) {
        for (int64_t i = 0; i < threads; i++)
            shares[i].next = items * i / threads, shares[i].end = items * (i + 1) / threads;
    }

    // Calls `call` for items until there are none: in a parallel region, by every thread that has time.
    template <class Call>
    void each(Call call) {
        const size_t own = omp_get_thread_num();
        for (size_t i = 0; i < shares.size(); i++) {
            Share& share = shares[(own + i) % shares.size()];
            for (int64_t item; (item = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;)
                call(item);
        }
    }
};
