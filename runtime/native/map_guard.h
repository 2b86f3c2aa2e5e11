// Read-only file mappings that survive their file.
//
// A page of a mapped file that lies behind the file's end (it was truncated), or that the disk cannot
// deliver, raises SIGBUS on the thread that touches it, and the default action ends the process.  Here a
// handler looks the address up among the known maps.  Inside one: the whole map is replaced by zero pages and
// marked as poisoned, and the thread goes on; whoever owns the map asks poisoned() before results leave.
// Outside: the handler that was installed before, or the default action.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <span>
#include <string>

namespace quantd {

class FileMap {
  public:
    // Maps a whole regular file.  Throws ModelFormatError (NOT_A_FILE, EMPTY_FILE) or std::system_error.
    explicit FileMap(const std::string& path);
    ~FileMap();
    FileMap(const FileMap&) = delete;
    FileMap& operator=(const FileMap&) = delete;

    std::span<const uint8_t> bytes() const { return {static_cast<const uint8_t*>(address_), size_}; }

    bool poisoned() const;

    // Poisoned, or the file's size or modification time is another than when it was mapped: somebody writes
    // into it, and a private mapping shows the new bytes.  Deleting or replacing the file by its name changes
    // nothing here.
    bool changed() const;

    // Bytes that lie in memory now, whole pages: of the page cache where the kernel tells us (mincore), else
    // mapped_bytes().  The kernel hides the page cache of files that we neither own nor may write, as a
    // served model often is, and then calls every page resident.
    uint64_t resident_bytes() const;

    // Bytes that this process has touched and that are still in memory (Rss in /proc/self/smaps).
    uint64_t mapped_bytes() const;

  private:
    int descriptor_ = -1;  // stays open for changed()
    timespec modified_{};
    void* address_ = nullptr;
    size_t size_ = 0;
    bool knows_page_cache_ = false;
    int slot_ = -1;  // in the handler's table
};

}  // namespace quantd
