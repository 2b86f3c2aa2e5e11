// Reading ahead: nothing starts where the file is in memory; a cold file is read behind the helper's back
// only as far as the limit; it ends whenever it is told to.
#include "readahead.h"

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

using quantd::Readahead;

namespace {

constexpr int64_t kBytes = int64_t{24} << 20;

int64_t resident_bytes(const uint8_t* data) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    std::vector<unsigned char> flags(static_cast<size_t>(kBytes / page));
    if (mincore(const_cast<uint8_t*>(data), static_cast<size_t>(kBytes), flags.data()) != 0) return -1;
    int64_t n = 0;
    for (const unsigned char flag : flags) n += (flag & 1) * page;
    return n;
}

// A mapped file, out of the page cache where the file system allows that.
struct File {
    File() {
        char name[] = "readahead_test_XXXXXX";
        fd = mkstemp(name);
        unlink(name);
        const std::vector<uint8_t> piece(1 << 20, 7);
        for (int64_t at = 0; at < kBytes; at += int64_t{1} << 20) {
            CHECK(write(fd, piece.data(), piece.size()) == static_cast<ssize_t>(piece.size()));
        }
        fsync(fd);
        evict();
        data = static_cast<const uint8_t*>(
            mmap(nullptr, static_cast<size_t>(kBytes), PROT_READ, MAP_SHARED, fd, 0));
        CHECK(data != MAP_FAILED);
    }
    ~File() {
        munmap(const_cast<uint8_t*>(data), static_cast<size_t>(kBytes));
        close(fd);
    }
    void evict() const { posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); }

    int fd;
    const uint8_t* data;
};

std::vector<Readahead::Range> ranges_of(const File& file, int64_t n) {
    std::vector<Readahead::Range> ranges;
    for (int64_t i = 0; i < n; ++i) ranges.push_back({file.data + i * kBytes / n + 5, kBytes / n - 5, 2 * i});
    return ranges;
}

// Reads a byte of each 512 KiB, which the system's own readahead does not foresee, until the helper starts.
int64_t touch_until_started(const File& file, Readahead& readahead) {
    volatile uint8_t sum = 0;
    int64_t op = 0;
    for (int64_t at = 0; at < kBytes && !readahead.started(); at += 512 << 10) {
        sum = static_cast<uint8_t>(sum + file.data[at]);
        readahead.advance(op);
    }
    return op;
}

void cold_file_is_read() {
    const File file;
    if (resident_bytes(file.data) > kBytes / 2) {
        std::printf("readahead: this file system keeps files in memory\n");
        return;
    }
    madvise(const_cast<uint8_t*>(file.data), static_cast<size_t>(kBytes), MADV_RANDOM);
    Readahead readahead(ranges_of(file, 6));
    touch_until_started(file, readahead);
    CHECK(readahead.started());
    for (int i = 0; i < 1000 && resident_bytes(file.data) < kBytes; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    CHECK(resident_bytes(file.data) == kBytes);
    readahead.stop();
}

void warm_file_is_left_alone() {
    const File file;
    volatile uint8_t sum = 0;
    for (int64_t at = 0; at < kBytes; at += 4096) sum = static_cast<uint8_t>(sum + file.data[at]);
    Readahead readahead(ranges_of(file, 6));
    for (int64_t op = 0; op < 12; ++op) readahead.advance(op);
    CHECK(!readahead.started());
}

void ends_at_any_time() {
    const File file;
    for (int i = 0; i < 20; ++i) {
        file.evict();
        Readahead readahead(ranges_of(file, 1 + i % 3));
        touch_until_started(file, readahead);
        if (i % 2 == 0) readahead.stop();
    }
}

}  // namespace

int main() {
    cold_file_is_read();
    warm_file_is_left_alone();
    ends_at_any_time();
    return quantd::test::finish("readahead");
}
