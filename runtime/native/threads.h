// The worker threads of the step executor.
//
// One region at a time: the caller publishes a function and a count, and returns when all of it is done. Each
// thread has a share, consecutive chunks of indices, so that weights are read in long runs; who has finished
// takes half of what another has left.  A worker that is not scheduled in time simply misses the region and
// the others take its share, so a busy neighbour on one core costs its share and never a stall at each
// barrier.  A worker that would be taken off its core in the middle of a chunk would be waited for: before
// that comes, it leaves the region between two chunks and offers its core itself.  Between regions workers
// spin for a moment and then sleep in the kernel: idle costs nothing.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace quantd {

class ThreadPool {
  public:
    static constexpr int kMaxThreads = 256;

    // n_threads counts the caller; n_threads - 1 workers are started.
    // Throws std::invalid_argument outside [1, kMaxThreads], std::system_error when a thread cannot start.
    explicit ThreadPool(int n_threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return static_cast<int>(workers_.size()) + 1; }

    // From the next region on `n_threads` threads take part, at least 1 and at most size(); the others sleep.
    void use(int n_threads) noexcept;
    int used() const { return used_.load(std::memory_order_relaxed); }

    // Held by whoever runs regions: programs that share a pool take turns.
    std::mutex& in_use() { return in_use_; }

    // Calls body(thread, begin, end) for half-open ranges that cover [0, n) in pieces of at most `chunk`;
    // `thread` in [0, size()) names per-thread scratch.  Everything that body wrote is visible on return.
    // Only the holder of in_use() may call it, and not from inside a body.  body must not throw.
    template <typename Body>
    void parallel_for(int64_t n, int64_t chunk, const Body& body) {
        static_assert(noexcept(body(0, int64_t{0}, int64_t{0})), "a body never throws across threads");
        if (n <= 0) return;
        if (n <= chunk || used() == 1) {
            body(0, int64_t{0}, n);
            return;
        }
        run(n, chunk, &call<Body>, &body);
    }

  private:
    using Call = void (*)(const void* body, int thread, int64_t begin, int64_t end) noexcept;

    template <typename Body>
    static void call(const void* body, int thread, int64_t begin, int64_t end) noexcept {
        (*static_cast<const Body*>(body))(thread, begin, end);
    }

    void run(int64_t n, int64_t chunk, Call call, const void* body);
    void share_out() noexcept;
    using Clock = std::chrono::steady_clock;
    bool take_chunks(int thread, Clock::time_point turn_end) noexcept;
    bool take_own(int thread, int64_t& chunk) noexcept;
    bool take_over(int thread) noexcept;
    void work(int thread) noexcept;
    bool enter_region(uint32_t& seen) noexcept;
    void leave_region() noexcept;
    void wait_for_workers() noexcept;
    void stop_workers() noexcept;

    // state_: bits 0-15 workers inside the region, bit 16 region open, bits 32-63 number of the region.
    // A worker enters only an open region, by one compare-and-swap; the caller closes it and waits for zero.
    static constexpr uint64_t kOpen = uint64_t{1} << 16;
    static constexpr uint64_t kActiveMask = 0xffff;

    alignas(64) std::atomic<uint64_t> state_{0};
    // What one thread has yet to do: chunks [begin, end), as begin << 32 | end.  Its owner takes the first,
    // others take from the end.
    struct alignas(64) Share {
        std::atomic<uint64_t> chunks{0};
    };
    std::unique_ptr<Share[]> shares_;            // (size())
    alignas(64) std::atomic<uint32_t> wake_{0};  // sleeping workers wait for it to change
    alignas(64) std::atomic<uint32_t> done_{0};  // the sleeping caller waits for it to change
    std::atomic<int> used_{1};  // threads that take part; the workers behind them wait for it to change
    std::atomic<bool> stop_{false};

    // The region; written by the caller while no worker is inside.
    alignas(64) int64_t n_ = 0;
    int64_t chunk_ = 1;
    Call call_ = nullptr;
    const void* body_ = nullptr;

    std::mutex in_use_;
    std::vector<std::thread> workers_;
};

}  // namespace quantd
