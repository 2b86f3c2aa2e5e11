// Cached vectors between the form in which store_kv writes them and their places in a page.
#include "kernels/attention/kv_layout.h"

#include <cstring>

#include "blocks.h"

namespace quantd {
namespace {

// Elements of kSize bytes at row, to where offset(i) says.
template <int kSize, typename Offset>
void spread(const uint8_t* row, uint8_t* run, int64_t n, const Offset& offset) {
    for (int64_t i = 0; i < n; ++i) std::memcpy(run + offset(i), row + i * kSize, kSize);
}

}  // namespace

int64_t kv_run_bytes(KvType type, int64_t head_dim, int64_t page_tokens) {
    return kv_row_bytes(type, head_dim) * padded_tokens(page_tokens);
}

void place_key(const uint8_t* row, uint8_t* run, int64_t t, int64_t head_dim, KvType type) {
    if (type == KvType::F16) {
        spread<2>(row, run, head_dim, [=](int64_t i) { return key_offset(t, i, head_dim, 2); });
    } else if (type == KvType::F32) {
        spread<4>(row, run, head_dim, [=](int64_t i) { return key_offset(t, i, head_dim, 4); });
    } else {
        for (int64_t b = 0; b < head_dim / kQ32; ++b, row += sizeof(BlockQ8_0)) {
            std::memcpy(run + q8_key_scale_offset(t, b, head_dim), row, 2);
            spread<2>(row + 2, run, kQ32 / 2,
                      [=](int64_t pair) { return q8_key_offset(t, b * kQ32 + 2 * pair, head_dim); });
        }
    }
}

void place_value(const uint8_t* row, uint8_t* run, int64_t t, int64_t head_dim, int64_t page_tokens,
                 KvType type) {
    if (type != KvType::Q8_0) {
        const int64_t size = type == KvType::F16 ? 2 : 4;
        std::memcpy(run + value_offset(t, 0, head_dim, size), row, static_cast<size_t>(head_dim * size));
        return;
    }
    for (int64_t b = 0; b < head_dim / kQ32; ++b, row += sizeof(BlockQ8_0)) {
        std::memcpy(run + q8_value_scale_offset(t, b, head_dim, page_tokens), row, 2);
        std::memcpy(run + t * head_dim + b * kQ32, row + 2, kQ32);
    }
}

}  // namespace quantd
