#include "readahead.h"

#include <algorithm>
#include <system_error>

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

namespace quantd {
namespace {

int64_t faults_from_disk() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_majflt;
}

}  // namespace

Readahead::Readahead(std::vector<Range> ranges) : ranges_(std::move(ranges)) {
    int64_t n_bytes = 0;
    for (const Range& range : ranges_) {
        begins_.push_back(n_bytes);
        n_bytes += range.n_bytes;
    }
}

Readahead::~Readahead() { stop(); }

void Readahead::advance(int64_t op) noexcept {
    op_.store(op, std::memory_order_release);
    if (started_) {
        op_.notify_one();
        return;
    }
    const int64_t faults = faults_from_disk();
    if (first_faults_ < 0) first_faults_ = faults;
    if (faults - first_faults_ < kColdFaults) return;
    started_ = true;
    try {
        helper_ = std::thread([this] { read(); });
    } catch (const std::system_error&) {  // without it the step is only slower
    }
}

void Readahead::stop() noexcept {
    stop_.store(true, std::memory_order_release);
    op_.fetch_add(1, std::memory_order_release);  // a waiting helper waits for a change of op_
    op_.notify_one();
    if (helper_.joinable()) helper_.join();
}

// Bytes of the operations that have begun.
int64_t Readahead::used_bytes() const noexcept {
    const int64_t op = op_.load(std::memory_order_acquire);
    const auto next = std::upper_bound(ranges_.begin(), ranges_.end(), op,
                                       [](int64_t value, const Range& range) { return value < range.op; });
    if (next == ranges_.begin()) return 0;
    const auto last = static_cast<size_t>(next - ranges_.begin()) - 1;
    return begins_[last] + ranges_[last].n_bytes;
}

void Readahead::read() noexcept {
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    for (size_t i = 0; i < ranges_.size(); ++i) {
        const Range& range = ranges_[i];
        for (int64_t done = 0; done < range.n_bytes; done += kPieceBytes) {
            for (;;) {
                const int64_t op = op_.load(std::memory_order_acquire);
                if (stop_.load(std::memory_order_acquire)) return;
                if (begins_[i] + done < used_bytes() + kAheadBytes) break;
                op_.wait(op, std::memory_order_acquire);
            }
            const auto begin = reinterpret_cast<uintptr_t>(range.data + done) / page * page;
            const auto end = reinterpret_cast<uintptr_t>(range.data) +
                             static_cast<uintptr_t>(std::min(done + kPieceBytes, range.n_bytes));
            madvise(reinterpret_cast<void*>(begin), end - begin,
                    MADV_WILLNEED);  // advice: refusal costs speed
        }
    }
}

}  // namespace quantd
