#include "map_guard.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <mutex>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "errors.h"

namespace quantd {
namespace {

// The table is read inside a signal handler: fixed size, atomics only.  A free slot has begin == 0.
struct Slot {
    std::atomic<uintptr_t> begin{0};
    std::atomic<uintptr_t> end{0};
    std::atomic<bool> poisoned{false};
};
constexpr int kMaxMaps = 4096;
std::array<Slot, kMaxMaps> g_slots;
std::mutex g_mutex;  // guards writers of the table and the installation of the handler

struct sigaction g_previous;

static_assert(std::atomic<uintptr_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

uintptr_t page_bytes() {
    static const uintptr_t value = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    return value;
}

bool absorb(uintptr_t address) {
    for (Slot& slot : g_slots) {
        uintptr_t begin = slot.begin.load(std::memory_order_acquire);
        uintptr_t end = slot.end.load(std::memory_order_acquire);
        if (begin == 0 || address < begin || address >= end) continue;
        // The whole map and not one page: nothing of this file counts any more, and one signal is cheaper
        // than one per page.  PROT_READ and private: zero pages cost no memory.
        void* zeros = mmap(reinterpret_cast<void*>(begin), end - begin, PROT_READ,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        if (zeros == MAP_FAILED) return false;
        slot.poisoned.store(true, std::memory_order_release);
        return true;
    }
    return false;
}

// The earlier handler gets one chance.  Handlers that report a crash restore what they found before (maybe
// us) and raise again; passing to them a second time would go round for ever.
void pass_on(int signal_number, siginfo_t* info, void* context) {
    static std::atomic<bool> passed{false};
    bool is_first = !passed.exchange(true);
    if (is_first && (g_previous.sa_flags & SA_SIGINFO)) {
        g_previous.sa_sigaction(signal_number, info, context);
    } else if (is_first && g_previous.sa_handler != SIG_DFL && g_previous.sa_handler != SIG_IGN) {
        g_previous.sa_handler(signal_number);
    } else {
        // Default action: a fault comes again as soon as we return; a signal that was sent must be sent
        // again.
        struct sigaction standard{};
        standard.sa_handler = SIG_DFL;
        sigaction(signal_number, &standard, nullptr);
        if (info->si_code <= 0) raise(signal_number);
    }
}

void on_bus_error(int signal_number, siginfo_t* info, void* context) {
    int saved_errno = errno;
    // si_code > 0: from the kernel, so si_addr is the address that faulted.
    bool absorbed = info->si_code > 0 && absorb(reinterpret_cast<uintptr_t>(info->si_addr));
    if (!absorbed) pass_on(signal_number, info, context);
    errno = saved_errno;
}

// Installs the handler unless it is in place; again at each new map, since others (faulthandler) may have put
// theirs on top meanwhile, and theirs would end the process without asking.
void ensure_handler() {
    struct sigaction current{};
    if (sigaction(SIGBUS, nullptr, &current) != 0) return;
    if ((current.sa_flags & SA_SIGINFO) && current.sa_sigaction == on_bus_error) return;
    g_previous = current;
    struct sigaction ours{};
    ours.sa_sigaction = on_bus_error;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, nullptr);
}

int add_slot(uintptr_t begin, uintptr_t end) {
    std::lock_guard lock(g_mutex);
    for (int i = 0; i < kMaxMaps; ++i) {
        if (g_slots[i].begin.load(std::memory_order_relaxed) != 0) continue;
        g_slots[i].poisoned.store(false, std::memory_order_relaxed);
        g_slots[i].end.store(end, std::memory_order_relaxed);
        g_slots[i].begin.store(begin, std::memory_order_release);
        ensure_handler();
        return i;
    }
    return -1;
}

void remove_slot(int index) {
    std::lock_guard lock(g_mutex);
    g_slots[index].begin.store(0, std::memory_order_release);
}

class Descriptor {
  public:
    explicit Descriptor(int fd) : fd_(fd) {}
    ~Descriptor() {
        if (fd_ >= 0) ::close(fd_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int get() const { return fd_; }
    int release() { return std::exchange(fd_, -1); }

  private:
    int fd_;
};

[[noreturn]] void throw_errno(const char* what) {
    throw std::system_error(errno, std::generic_category(), what);
}

const char* describe(mode_t mode) {
    if (S_ISDIR(mode)) return "a directory";
    if (S_ISFIFO(mode)) return "a pipe";
    if (S_ISSOCK(mode)) return "a socket";
    if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
    return "not a regular file";
}

}  // namespace

FileMap::FileMap(const std::string& path) {
    // O_NONBLOCK: opening a pipe without a writer must not hang; it changes nothing for regular files.
    int fd;
    do {
        fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0) throw_errno("open");
    Descriptor descriptor(fd);
    struct stat status{};
    if (fstat(descriptor.get(), &status) != 0) throw_errno("fstat");
    if (!S_ISREG(status.st_mode)) {
        throw ModelFormatError("NOT_A_FILE", "", 0,
                               std::string("the path names ") + describe(status.st_mode) +
                                   ", not a model file; give the path of a .gguf file");
    }
    if (status.st_size <= 0) {
        throw ModelFormatError("EMPTY_FILE", "", 0, "the file is empty (0 bytes); download or copy it again");
    }
    size_ = static_cast<size_t>(status.st_size);
    void* address = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, descriptor.get(), 0);
    if (address == MAP_FAILED) throw_errno("mmap");
    address_ = address;
    knows_page_cache_ = status.st_uid == geteuid() || access(path.c_str(), W_OK) == 0;
    uintptr_t begin = reinterpret_cast<uintptr_t>(address_);
    uintptr_t pages = (size_ + page_bytes() - 1) / page_bytes();
    slot_ = add_slot(begin, begin + pages * page_bytes());
    if (slot_ < 0) {
        munmap(address_, size_);
        throw std::system_error(EMFILE, std::generic_category(), "too many mapped model files");
    }
    modified_ = status.st_mtim;
    descriptor_ = descriptor.release();
}

FileMap::~FileMap() {
    // Out of the table first: once unmapped, the addresses may belong to somebody else.
    remove_slot(slot_);
    munmap(address_, size_);
    close(descriptor_);
}

bool FileMap::poisoned() const { return g_slots[slot_].poisoned.load(std::memory_order_acquire); }

bool FileMap::changed() const {
    struct stat now{};
    return poisoned() || fstat(descriptor_, &now) != 0 || static_cast<size_t>(now.st_size) != size_ ||
           now.st_mtim.tv_sec != modified_.tv_sec || now.st_mtim.tv_nsec != modified_.tv_nsec;
}

uint64_t FileMap::mapped_bytes() const {
    const auto first = reinterpret_cast<uintptr_t>(address_);
    std::ifstream smaps("/proc/self/smaps");
    uint64_t total_kib = 0;
    bool is_inside = false;
    for (std::string line; std::getline(smaps, line);) {
        unsigned long begin = 0;
        unsigned long end = 0;
        unsigned long long rss_kib = 0;
        if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
            is_inside = begin >= first && begin < first + size_;
        } else if (is_inside && std::sscanf(line.c_str(), "Rss: %llu", &rss_kib) == 1) {
            total_kib += rss_kib;
        }
    }
    return total_kib * 1024;
}

uint64_t FileMap::resident_bytes() const {
    if (!knows_page_cache_) return mapped_bytes();
    constexpr size_t kChunkPages = 16'384;
    std::array<unsigned char, kChunkPages> flags;  // one byte per page
    const size_t page = page_bytes();
    uint64_t resident_pages = 0;
    for (size_t offset = 0; offset < size_; offset += kChunkPages * page) {
        size_t bytes = std::min(size_ - offset, kChunkPages * page);
        if (mincore(static_cast<uint8_t*>(address_) + offset, bytes, flags.data()) != 0)
            throw_errno("mincore");
        for (size_t i = 0; i < (bytes + page - 1) / page; ++i) resident_pages += flags[i] & 1;
    }
    return resident_pages * page;
}

}  // namespace quantd
