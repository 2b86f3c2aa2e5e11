// The thread pool: every index once, writes visible, many short regions, sleeping workers.  Meant for
// -fsanitize=thread as well.
#include "threads.h"

#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"

using quantd::ThreadPool;

namespace {

// Workers leave a long region between chunks and come back to it: still every index once.
void longer_than_a_turn(ThreadPool& pool) {
    std::vector<int32_t> touched(200, 0);
    pool.parallel_for(200, 1, [&](int, int64_t begin, int64_t end) noexcept {
        const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
        while (std::chrono::steady_clock::now() < until) continue;
        for (int64_t i = begin; i < end; ++i) ++touched[static_cast<size_t>(i)];
    });
    for (const int32_t times : touched) CHECK(times == 1);
}

// Plain integers and no atomics: the pool itself must order the writes of one region before the next.
void every_index_once(ThreadPool& pool, int64_t n, int64_t chunk) {
    std::vector<int32_t> touched(static_cast<size_t>(n), 0);
    std::vector<int32_t> thread_of(static_cast<size_t>(n), -1);
    pool.parallel_for(n, chunk, [&](int thread, int64_t begin, int64_t end) noexcept {
        for (int64_t i = begin; i < end; ++i) {
            ++touched[static_cast<size_t>(i)];
            thread_of[static_cast<size_t>(i)] = thread;
        }
    });
    for (int64_t i = 0; i < n; ++i) {
        CHECK(touched[static_cast<size_t>(i)] == 1);
        CHECK(thread_of[static_cast<size_t>(i)] >= 0 && thread_of[static_cast<size_t>(i)] < pool.size());
    }
}

// Each region reads what other threads wrote in the region before.
void regions_follow_each_other(ThreadPool& pool, int n_regions) {
    constexpr int64_t n = 97;
    std::vector<int64_t> values(n, 0), next(n, 0);
    for (int region = 0; region < n_regions; ++region) {
        pool.parallel_for(n, 3, [&](int, int64_t begin, int64_t end) noexcept {
            for (int64_t i = begin; i < end; ++i) {
                next[static_cast<size_t>(i)] = values[static_cast<size_t>((i + 41) % n)] + 1;
            }
        });
        values.swap(next);
    }
    for (const int64_t value : values) CHECK(value == n_regions);
}

void sleeping_workers_wake(ThreadPool& pool) {
    for (int i = 0; i < 20; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        every_index_once(pool, 1000, 10);
    }
}

// The number of threads changes between regions, and while workers sleep or wait for one.
void some_of_the_threads(ThreadPool& pool) {
    for (int i = 0; i < 60; ++i) {
        pool.use(i % (pool.size() + 2));  // below 1 and above size() too
        CHECK(pool.used() >= 1 && pool.used() <= pool.size());
        if (i % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        every_index_once(pool, 1000, 10);
    }
    pool.use(1);
    pool.parallel_for(1000, 10, [](int thread, int64_t, int64_t) noexcept { CHECK(thread == 0); });
    pool.use(pool.size());
    regions_follow_each_other(pool, 200);
}

}  // namespace

int main() {
    for (const int n_threads : {1, 2, 3, 8}) {
        ThreadPool pool(n_threads);
        CHECK(pool.size() == n_threads);
        for (const int64_t n : {0, 1, 2, 7, 1000}) {
            for (const int64_t chunk : {1, 3, 1000, 5000}) every_index_once(pool, n, chunk);
        }
        longer_than_a_turn(pool);
        regions_follow_each_other(pool, 2000);
        sleeping_workers_wake(pool);
        some_of_the_threads(pool);
        pool.use(1);  // stopped while workers are left out
    }
    for (int i = 0; i < 50; ++i) ThreadPool pool(4);  // started and stopped without work
    CHECK_THROWS(std::invalid_argument, ThreadPool(0));
    return quantd::test::finish("threads");
}
