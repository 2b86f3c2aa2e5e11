// Reading weights from disk ahead of their use, in the first step of a cold start.
//
// A step uses the weights in a fixed order.  Where its first part had to wait for the disk, a helper thread
// asks the system for the weights that follow, a bounded distance ahead of the computing, so that the disk
// works while the cores do.  It ends with the step; where the file is in memory it never starts.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace quantd {

class Readahead {
  public:
    // A part of a mapping, used by operation `op`.
    struct Range {
        const uint8_t* data;
        int64_t n_bytes;
        int64_t op;
    };

    static constexpr int64_t kAheadBytes = int64_t{256} << 20;  // read and not used yet
    static constexpr int64_t kPieceBytes = int64_t{4} << 20;    // asked for at once
    static constexpr int64_t kColdFaults = 8;  // page faults served from disk that tell a cold file

    // Ranges in the order of their use, by operations in ascending order.
    explicit Readahead(std::vector<Range> ranges);
    ~Readahead();
    Readahead(const Readahead&) = delete;
    Readahead& operator=(const Readahead&) = delete;

    // Operation `op` begins.  Starts the helper at the first call that finds the file cold.
    void advance(int64_t op) noexcept;

    // The step is over: the helper ends.
    void stop() noexcept;

    bool started() const { return started_; }

  private:
    void read() noexcept;
    int64_t used_bytes() const noexcept;

    std::vector<Range> ranges_;
    std::vector<int64_t> begins_;  // bytes before each range
    int64_t first_faults_ = -1;    // of this process before the step; -1: not looked yet
    bool started_ = false;
    std::atomic<int64_t> op_{0};
    std::atomic<bool> stop_{false};
    std::thread helper_;
};

}  // namespace quantd
