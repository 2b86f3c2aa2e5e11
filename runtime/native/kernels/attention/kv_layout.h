// Where the elements of cached keys and values lie in a page.  A run holds the keys, or the values, of one
// page, layer and KV head; its length is kv_run_bytes.  Positions t count from the page's first.
//
// Keys lie in groups of kKeyGroup positions, one dimension (q8_0: one pair of dimensions) of all positions
// side by side, so that scores of neighbouring positions come out in neighbouring lanes and no sum crosses
// lanes:
//     F16, F32   [t / 16][dimension][t % 16]
//     Q8_0       [t / 16]{ int8 [dimension / 2][t % 16][dimension % 2];  f16 d [dimension / 32][t % 16] }
// Values lie position by position, as they are summed up:
//     F16, F32   [t][dimension]
//     Q8_0       int8 [t][dimension];  f16 d [dimension / 32][t]
//
// Internal linkage, as in tile.h: files of every level include it, and none can be linked into another's
// code.
#pragma once

#include "kernels.h"

namespace quantd {
namespace {

constexpr int64_t kKeyGroup = 16;

// Element i of position t; size in bytes of an element.
[[maybe_unused]] inline int64_t key_offset(int64_t t, int64_t i, int64_t head_dim, int64_t size) {
    return ((t / kKeyGroup * head_dim + i) * kKeyGroup + t % kKeyGroup) * size;
}
[[maybe_unused]] inline int64_t value_offset(int64_t t, int64_t i, int64_t head_dim, int64_t size) {
    return (t * head_dim + i) * size;
}

// Q8_0: 34 bytes for 32 elements, the scales behind the quants of their group, or of the page.
[[maybe_unused]] inline int64_t q8_key_group_bytes(int64_t head_dim) {
    return kKeyGroup * (head_dim / 32) * 34;
}
[[maybe_unused]] inline int64_t q8_key_offset(int64_t t, int64_t i, int64_t head_dim) {
    return t / kKeyGroup * q8_key_group_bytes(head_dim) + (i / 2 * kKeyGroup + t % kKeyGroup) * 2 + i % 2;
}
[[maybe_unused]] inline int64_t q8_key_scale_offset(int64_t t, int64_t block, int64_t head_dim) {
    return t / kKeyGroup * q8_key_group_bytes(head_dim) + kKeyGroup * head_dim +
           (block * kKeyGroup + t % kKeyGroup) * 2;
}
[[maybe_unused]] inline int64_t padded_tokens(int64_t page_tokens) {
    return (page_tokens + kKeyGroup - 1) / kKeyGroup * kKeyGroup;
}
[[maybe_unused]] inline int64_t q8_value_scale_offset(int64_t t, int64_t block, int64_t head_dim,
                                                      int64_t page_tokens) {
    const int64_t tokens = padded_tokens(page_tokens);
    return tokens * head_dim + (block * tokens + t) * 2;
}

}  // namespace
}  // namespace quantd
