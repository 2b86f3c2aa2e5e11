// The KV arena: every page that sessions will ever use, taken and touched once at start.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace quantd {

// What one page holds: keys and values of page_tokens positions, for all layers and KV heads.
struct ArenaShape {
    int64_t n_layers;
    int64_t n_kv_heads;
    int64_t head_dim;
    int64_t page_tokens;
    int64_t n_pages;
    KvType kv_type;
};

// Layout: [page][layer][kv_head][K | V], each a contiguous run of the page's keys or values of one head
// (kernels/attention/kv_layout.h).
class Arena {
  public:
    // Maps and touches n_pages pages, so that serving adds no memory later.
    // Throws std::invalid_argument for a bad shape, std::bad_alloc when the memory is refused.
    explicit Arena(const ArenaShape& shape);
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    const ArenaShape& shape() const { return shape_; }
    int64_t row_bytes() const { return row_bytes_; }    // one vector (head_dim) as store_kv writes it
    int64_t page_bytes() const { return page_bytes_; }  // one page over all layers
    int64_t size_bytes() const { return page_bytes_ * shape_.n_pages; }

    uint8_t* keys(int64_t page, int64_t layer, int64_t kv_head) const {
        return base_ + page * page_bytes_ + (layer * shape_.n_kv_heads + kv_head) * 2 * run_bytes_;
    }
    uint8_t* values(int64_t page, int64_t layer, int64_t kv_head) const {
        return keys(page, layer, kv_head) + run_bytes_;
    }

  private:
    ArenaShape shape_;
    int64_t row_bytes_ = 0;
    int64_t run_bytes_ = 0;  // page_tokens vectors, rounded up to whole groups of positions
    int64_t page_bytes_ = 0;
    uint8_t* base_ = nullptr;
};

}  // namespace quantd
