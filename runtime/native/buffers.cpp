#include "buffers.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace quantd {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kGranule = size_t{256}
                            << 10;  // sizes are whole ones, so that chunks of one type fit each other
constexpr size_t kMaxBytes = size_t{1} << 40;

// In front of every buffer.
struct alignas(kAlignment) Header {
    size_t size;  // bytes behind it
};

struct Kept {
    std::mutex mutex;  // guards what follows
    std::vector<Header*> buffers;
    size_t n_bytes = 0;
};

// Never destroyed: a buffer may come back while the process ends.
Kept& kept() {
    static Kept* const all = new Kept;
    return *all;
}

// The smallest kept one that is large enough and not twice as large as needed; nullptr: none.
Header* find_kept(size_t size) {
    Kept& all = kept();
    const std::lock_guard lock(all.mutex);
    auto best = all.buffers.end();
    for (auto it = all.buffers.begin(); it != all.buffers.end(); ++it) {
        const size_t have = (*it)->size;
        const bool fits = have >= size && have <= 2 * size;
        if (fits && (best == all.buffers.end() || have < (*best)->size)) best = it;
    }
    if (best == all.buffers.end()) return nullptr;
    Header* found = *best;
    all.buffers.erase(best);
    all.n_bytes -= found->size;
    return found;
}

}  // namespace

void* take_buffer(size_t n_bytes) {
    if (n_bytes > kMaxBytes) throw std::bad_alloc();
    const size_t size = std::max<size_t>((n_bytes + kGranule - 1) / kGranule, 1) * kGranule;
    Header* header = find_kept(size);
    if (header == nullptr) {
        void* memory = std::aligned_alloc(kAlignment, sizeof(Header) + size);
        if (memory == nullptr) throw std::bad_alloc();
        header = new (memory) Header{size};
    }
    return header + 1;
}

void give_back_buffer(void* memory) noexcept {
    Header* header = static_cast<Header*>(memory) - 1;
    try {
        Kept& all = kept();
        const std::lock_guard lock(all.mutex);
        if (all.n_bytes + header->size <= kMaxKeptBytes) {
            all.buffers.push_back(header);
            all.n_bytes += header->size;
            return;
        }
    } catch (const std::bad_alloc&) {  // no room to note it: then it is freed
    }
    std::free(header);
}

}  // namespace quantd
