#include "arena.h"

#include <new>
#include <stdexcept>
#include <string>

#include <sys/mman.h>
#include <unistd.h>

namespace quantd {
namespace {

int64_t checked_product(int64_t a, int64_t b) {
    int64_t result = 0;
    if (__builtin_mul_overflow(a, b, &result))
        throw std::invalid_argument("the KV arena's size overflows 64 bits");
    return result;
}

void require_range(const char* name, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) {
        throw std::invalid_argument(std::string(name) + " must lie between " + std::to_string(low) + " and " +
                                    std::to_string(high) + ", got " + std::to_string(value));
    }
}

// Gives every page of the mapping its memory now: an out-of-memory shows at start and not in a request.
//
// By touching it, and not by MADV_POPULATE_WRITE: that holds the lock of the whole address space while it
// clears pages, and the imports beside it, which map libraries and memory all the time, wait.  A fault locks
// its own mapping only.
void populate(uint8_t* base, int64_t size_bytes) {
    const int64_t step_bytes = sysconf(_SC_PAGESIZE);
    for (int64_t offset = 0; offset < size_bytes; offset += step_bytes) {
        *const_cast<volatile uint8_t*>(base + offset) = 0;
    }
}

}  // namespace

Arena::Arena(const ArenaShape& shape) : shape_(shape) {
    require_range("n_layers", shape.n_layers, 1, 1 << 16);
    require_range("n_kv_heads", shape.n_kv_heads, 1, 1 << 16);
    require_range("head_dim", shape.head_dim, 1, 1 << 16);
    require_range("page_tokens", shape.page_tokens, 1, 1 << 16);
    require_range("n_pages", shape.n_pages, 1, INT32_MAX);
    if (shape.kv_type == KvType::Q8_0 && shape.head_dim % 32 != 0) {
        throw std::invalid_argument("a q8_0 KV cache needs a head_dim that is a multiple of 32, got " +
                                    std::to_string(shape.head_dim));
    }
    row_bytes_ = kv_row_bytes(shape.kv_type, shape.head_dim);
    run_bytes_ = kv_run_bytes(shape.kv_type, shape.head_dim, shape.page_tokens);  // each below 2^35
    page_bytes_ = checked_product(checked_product(run_bytes_, 2 * shape.n_kv_heads), shape.n_layers);
    const int64_t total_bytes = checked_product(page_bytes_, shape.n_pages);

    void* mapping = mmap(nullptr, static_cast<size_t>(total_bytes), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<uint8_t*>(mapping);
    madvise(base_, static_cast<size_t>(total_bytes), MADV_HUGEPAGE);  // advice only: refusal costs speed
    try {
        populate(base_, total_bytes);
    } catch (...) {
        munmap(base_, static_cast<size_t>(total_bytes));
        throw;
    }
}

Arena::~Arena() { munmap(base_, static_cast<size_t>(size_bytes())); }

}  // namespace quantd
