#include "threads.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace quantd {
namespace {

inline void cpu_relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Long enough to bridge the serial work between two regions of a step, short enough to cost nothing when
// idle.
constexpr std::chrono::microseconds kSpin{40};
constexpr int kPausesPerClockRead = 32;

// How long a worker keeps its core before it offers it, below the time slices of the system: a yield in which
// nobody waits costs a microsecond, and being taken off in the middle of a chunk costs everybody a slice of
// the neighbour.
constexpr std::chrono::microseconds kTurn{700};

constexpr int64_t kMaxChunks = int64_t{1} << 31;
constexpr uint64_t kEndMask = 0xffffffff;

// Spins until ready() or until kSpin has passed; tells whether it became ready.
template <typename Ready>
bool spin_until(const Ready& ready) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < kPausesPerClockRead; ++i) {
            if (ready()) return true;
            cpu_relax();
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

}  // namespace

ThreadPool::ThreadPool(int n_threads) {
    if (n_threads < 1 || n_threads > kMaxThreads) {
        throw std::invalid_argument("n_threads must lie between 1 and " + std::to_string(kMaxThreads) +
                                    ", got " + std::to_string(n_threads));
    }
    used_.store(n_threads, std::memory_order_seq_cst);
    shares_ = std::make_unique<Share[]>(static_cast<size_t>(n_threads));
    workers_.reserve(static_cast<size_t>(n_threads - 1));
    try {
        for (int i = 1; i < n_threads; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (...) {
        stop_workers();
        throw;
    }
}

ThreadPool::~ThreadPool() { stop_workers(); }

void ThreadPool::stop_workers() noexcept {
    stop_.store(true, std::memory_order_seq_cst);
    wake_.fetch_add(1, std::memory_order_seq_cst);
    wake_.notify_all();
    used_.store(0, std::memory_order_seq_cst);  // not what a worker that sleeps has seen
    used_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void ThreadPool::use(int n_threads) noexcept {
    used_.store(std::clamp(n_threads, 1, size()), std::memory_order_seq_cst);
    used_.notify_all();
}

void ThreadPool::run(int64_t n, int64_t chunk, Call call, const void* body) {
    n_ = n;
    chunk_ = std::max({int64_t{1}, chunk, n / kMaxChunks + 1});
    call_ = call;
    body_ = body;
    share_out();
    const uint64_t region = (state_.load(std::memory_order_relaxed) >> 32) + 1;
    state_.store((region << 32) | kOpen, std::memory_order_seq_cst);
    wake_.fetch_add(1, std::memory_order_seq_cst);
    wake_.notify_all();  // no system call when nobody sleeps

    take_chunks(0, Clock::time_point::max());
    wait_for_workers();
}

void ThreadPool::share_out() noexcept {
    const int64_t n_chunks = (n_ + chunk_ - 1) / chunk_, n_threads = used();
    for (int64_t i = 0; i < size(); ++i) {  // those that take no part get nothing
        const auto begin = static_cast<uint64_t>(n_chunks * std::min(i, n_threads) / n_threads);
        const auto end = static_cast<uint64_t>(n_chunks * std::min(i + 1, n_threads) / n_threads);
        shares_[static_cast<size_t>(i)].chunks.store(begin << 32 | end, std::memory_order_relaxed);
    }
}

// Whether nothing is left to take; false where the turn ended before that, with the rest for the others.
bool ThreadPool::take_chunks(int thread, Clock::time_point turn_end) noexcept {
    int64_t chunk = 0;
    do {
        while (take_own(thread, chunk)) {
            const int64_t begin = chunk * chunk_;
            call_(body_, thread, begin, std::min(n_, begin + chunk_));
            if (turn_end != Clock::time_point::max() && Clock::now() >= turn_end) return false;
        }
    } while (take_over(thread));
    return true;
}

bool ThreadPool::take_own(int thread, int64_t& chunk) noexcept {
    std::atomic<uint64_t>& own = shares_[static_cast<size_t>(thread)].chunks;
    uint64_t share = own.load(std::memory_order_relaxed);
    while ((share >> 32) < (share & kEndMask)) {
        if (own.compare_exchange_weak(share, share + (uint64_t{1} << 32), std::memory_order_relaxed)) {
            chunk = static_cast<int64_t>(share >> 32);
            return true;
        }
    }
    return false;
}

// Half of the largest share that is left becomes this thread's, whose own is empty.  No share ever comes
// back: the first chunk of one that was a thread's is done before the thread takes another, so a
// compare-and-swap cannot take an old share for a new one.
bool ThreadPool::take_over(int thread) noexcept {
    for (;;) {
        int from = -1;
        uint64_t share = 0, most = 0;
        for (int i = 0; i < size(); ++i) {
            const uint64_t each = shares_[static_cast<size_t>(i)].chunks.load(std::memory_order_relaxed);
            const uint64_t begin = each >> 32, end = each & kEndMask;
            if (begin < end && end - begin > most) {
                most = end - begin;
                share = each;
                from = i;
            }
        }
        if (from == -1) return false;
        const uint64_t end = share & kEndMask, middle = end - (most + 1) / 2;
        if (shares_[static_cast<size_t>(from)].chunks.compare_exchange_strong(share, share - end + middle,
                                                                              std::memory_order_relaxed)) {
            shares_[static_cast<size_t>(thread)].chunks.store(middle << 32 | end, std::memory_order_relaxed);
            return true;
        }
    }
}

void ThreadPool::wait_for_workers() noexcept {
    state_.fetch_and(~kOpen, std::memory_order_acq_rel);
    const auto all_left = [this] { return (state_.load(std::memory_order_acquire) & kActiveMask) == 0; };
    if (all_left() || spin_until(all_left)) return;
    for (;;) {
        const uint32_t before = done_.load(std::memory_order_seq_cst);
        if (all_left()) return;
        done_.wait(before, std::memory_order_seq_cst);
    }
}

bool ThreadPool::enter_region(uint32_t& seen) noexcept {
    uint64_t state = state_.load(std::memory_order_acquire);
    while ((state & kOpen) != 0 && static_cast<uint32_t>(state >> 32) != seen) {
        if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel,
                                         std::memory_order_acquire)) {
            seen = static_cast<uint32_t>(state >> 32);
            return true;
        }
    }
    return false;
}

void ThreadPool::leave_region() noexcept {
    const uint64_t before = state_.fetch_sub(1, std::memory_order_acq_rel);
    if ((before & kActiveMask) == 1 && (before & kOpen) == 0) {
        done_.fetch_add(1, std::memory_order_seq_cst);
        done_.notify_one();
    }
}

void ThreadPool::work(int thread) noexcept {
    uint32_t seen = 0;  // the last region this worker took part in; regions count from 1
    Clock::time_point turn_end = Clock::now() + kTurn;
    for (;;) {
        const int used = used_.load(std::memory_order_seq_cst);
        if (thread >= used && !stop_.load(std::memory_order_seq_cst)) {
            used_.wait(used, std::memory_order_seq_cst);
            continue;
        }
        const uint32_t before = wake_.load(std::memory_order_seq_cst);
        const bool entered = enter_region(seen) || spin_until([&] {
                                 return stop_.load(std::memory_order_relaxed) || enter_region(seen);
                             });
        if (stop_.load(std::memory_order_seq_cst)) return;  // the pool ends only between regions
        if (!entered) {
            wake_.wait(before, std::memory_order_seq_cst);
            turn_end = Clock::now() + kTurn;
            continue;
        }
        const bool all_taken = take_chunks(thread, turn_end);
        leave_region();
        if (all_taken) continue;
        std::this_thread::yield();  // returns at once where nobody else wants the core
        turn_end = Clock::now() + kTurn;
        --seen;  // the same region, if it is still open
    }
}

}  // namespace quantd
