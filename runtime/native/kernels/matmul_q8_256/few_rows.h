// Few activation rows against super-blocks of 256 weights as they lie, for the loops of ../panel.h.
//
// Everything here has internal linkage: each level that includes it gets a copy compiled with its own flags.
// Include it from kernel files of levels with AVX2 only.
#pragma once

#include <immintrin.h>

#include "kernels/matmul_q8_256/formats.h"
#include "kernels/panel.h"

namespace quantd {
namespace {

template <class Format>
__m256i without_offset(__m256i sum, const typename Format::Header& header, const uint8_t* tail) {
    return _mm256_sub_epi32(sum, _mm256_slli_epi32(scaled_sums(header.scale, tail), Format::kOffsetBits));
}

// The scale or the two scales of 32 elements of row i, as words.
template <class Format>
__m256i scale_of(const typename Format::Header& header, int group, int i) {
    const auto at = [&](int index) {
        return broadcast32(reinterpret_cast<const uint8_t*>(header.scale + index) + 4 * i);
    };
    if constexpr (Format::kScaleElements == 32) {
        return at(group);
    } else {
        return _mm256_blend_epi32(at(2 * group), at(2 * group + 1), 0xf0);
    }
}

template <class Format, int kRows>
void few_rows(const Rows& rows, const MatmulArgs& args, int64_t next_rows_bytes, __m256* acc) {
    __m256 total[kRows];
    for (int r = 0; r < kRows; ++r) total[r] = _mm256_setzero_ps();
    const int64_t n = args.n_in / kQ256;
    for (int64_t at = 0; at < n; ++at) {
        const int64_t ahead = offset_ahead(at, 8, n, Format::kBytes, next_rows_bytes);
        const Rows blocks = advance(rows, at * Format::kBytes);
        const uint8_t* act = args.act + at * kActBytes;
        typename Format::Header header;
        Format::decode(blocks, header);
        __m256i sum[kRows][kLanes];
#pragma GCC unroll 1
        for (int i = 0; i < kLanes; ++i) {
            prefetch_block<Format::kBytes>(rows[i] + ahead);
            __m256i part[kRows];
            for (int r = 0; r < kRows; ++r) part[r] = _mm256_setzero_si256();
#pragma GCC unroll 8
            for (int group = 0; group < 8; ++group) {
                const __m256i q = Format::quants(blocks[i], group),
                              scale = scale_of<Format>(header, group, i);
                for (int r = 0; r < kRows; ++r) {
                    const __m256i a = load256(act + r * args.act_stride + 32 * kGroupOrder[group]);
                    part[r] = add_products(part[r], pairs<Format::kSigned>(q, a), scale);
                }
            }
            for (int r = 0; r < kRows; ++r) sum[r][i] = part[r];
        }
        for (int r = 0; r < kRows; ++r) {
            const uint8_t* tail = act + r * args.act_stride + kActTail;
            __m256i whole = sum_across(sum[r]);
            if constexpr (Format::kOffsetBits > 0) whole = without_offset<Format>(whole, header, tail);
            total[r] = Format::finish(total[r], whole, header, tail);
        }
    }
    for (int r = 0; r < kRows; ++r) acc[r] = total[r];
}

}  // namespace
}  // namespace quantd
