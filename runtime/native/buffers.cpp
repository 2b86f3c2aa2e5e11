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

std::mutex mutex;  // guards what follows
std::vector<Header*> kept;
size_t kept_bytes = 0;

// The smallest kept one that is large enough and not twice as large as needed; nullptr: none.
Header* find_kept(size_t size) {
    const std::lock_guard lock(mutex);
    auto best = kept.end();
    for (auto it = kept.begin(); it != kept.end(); ++it) {
        const size_t have = (*it)->size;
        if (have >= size && have <= 2 * size && (best == kept.end() || have < (*best)->size)) best = it;
    }
    if (best == kept.end()) return nullptr;
    Header* found = *best;
    kept.erase(best);
    kept_bytes -= found->size;
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
    {
        const std::lock_guard lock(mutex);
        if (kept_bytes + header->size <= kMaxKeptBytes) {
            try {
                kept.push_back(header);
                kept_bytes += header->size;
                return;
            } catch (const std::bad_alloc&) {  // then it is freed
            }
        }
    }
    std::free(header);
}

}  // namespace quantd
