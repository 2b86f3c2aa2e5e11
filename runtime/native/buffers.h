// Memory for what passes through once: chunks of a file on their way from the disk to the disk.
#pragma once

#include <cstddef>

namespace quantd {

// At least n_bytes, not initialized, 64-byte aligned.  What is given
// back is kept for the next, at most kMaxKeptBytes of it: its pages are there already, and clearing new ones
// costs as much as copying into them (and waits for the disk where they are huge ones: making room moves
// pages that are being written).  For any thread.  Throws std::bad_alloc.
void* take_buffer(size_t n_bytes);
void give_back_buffer(void* memory) noexcept;

constexpr size_t kMaxKeptBytes = size_t{32} << 20;

}  // namespace quantd
