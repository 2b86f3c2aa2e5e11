// Few activation rows against blocks of 32 weights as they lie, for the loops of ../panel.h.
//
// Everything here has internal linkage: each level that includes it gets a copy compiled with its own flags.
// Include it from kernel files of levels with AVX2 only.
#pragma once

#include <immintrin.h>

#include "kernels/matmul_q8_32/formats.h"
#include "kernels/panel.h"

namespace quantd {
namespace {

constexpr int64_t kUnitBlocks = 8;  // blocks that the loops take for one

inline int64_t n_units(int64_t n_in) { return (n_in / kQ32 + kUnitBlocks - 1) / kUnitBlocks; }
inline int64_t blocks_of(int64_t n_in, int64_t at) {
    const int64_t left = n_in / kQ32 - at * kUnitBlocks;
    return left < kUnitBlocks ? left : kUnitBlocks;
}

// acc + what one block adds; sum: the products of stored quants and activations.
template <class Format>
__m256 add_block(__m256 acc, __m256i sum, __m256 d, __m256 min, const uint8_t* act_scale,
                 const uint8_t* act_sum) {
    __m256 value = _mm256_cvtepi32_ps(sum);
    if constexpr (Format::kOffset != 0) {  // exact
        value = _mm256_fnmadd_ps(_mm256_set1_ps(Format::kOffset), broadcast_float(act_sum), value);
    }
    const __m256 scale = broadcast_float(act_scale);
    acc = _mm256_fmadd_ps(_mm256_mul_ps(d, scale), value, acc);
    if constexpr (Format::kHasMin)
        acc = _mm256_fmadd_ps(_mm256_mul_ps(min, scale), broadcast_float(act_sum), acc);
    return acc;
}

inline __m256i add_words(__m256i words) { return _mm256_madd_epi16(words, _mm256_set1_epi16(1)); }

// Sums of four products each.
template <class Format>
__m256i fours(__m256i q, __m256i act) {
#if defined(__AVXVNNI__)
    static_assert(!Format::kSigned);
    return _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), q, act);
#else
    return add_words(pairs<Format::kSigned>(q, act));
#endif
}

template <class Format, int kRows>
void few_rows(const Rows& rows, const MatmulArgs& args, int64_t next_rows_bytes, __m256* acc) {
    constexpr int64_t kUnitBytes = kUnitBlocks * Format::kBytes;
    __m256 total[kRows];
    for (int r = 0; r < kRows; ++r) total[r] = _mm256_setzero_ps();
    const int64_t n = n_units(args.n_in), row_blocks = args.n_in / kQ32;
    for (int64_t at = 0; at < n; ++at) {
        const int64_t ahead = offset_ahead(at, 6, n, kUnitBytes, next_rows_bytes);
        for (int i = 0; i < kLanes; ++i) prefetch_block<kUnitBytes>(rows[i] + ahead);
        const int64_t end = at * kUnitBlocks + blocks_of(args.n_in, at);
#pragma GCC unroll 1
        for (int64_t b = at * kUnitBlocks; b < end; ++b) {
            const Rows block = advance(rows, b * Format::kBytes);
            const uint8_t* act = args.act + b * kQ32;
            __m256i sum[kRows][kLanes];
#pragma GCC unroll 8
            for (int i = 0; i < kLanes; ++i) {
                const __m256i q = Format::quants(block[i]);
                for (int r = 0; r < kRows; ++r)
                    sum[r][i] = fours<Format>(q, load256(act + r * args.act_stride));
            }
            const __m256 d = Format::scales(block);
            const __m256 min = Format::kHasMin ? Format::mins(block) : _mm256_setzero_ps();
            for (int r = 0; r < kRows; ++r) {
                const uint8_t* scale = args.act + r * args.act_stride + args.n_in + 4 * b;
                total[r] =
                    add_block<Format>(total[r], sum_across(sum[r]), d, min, scale, scale + 4 * row_blocks);
            }
        }
    }
    for (int r = 0; r < kRows; ++r) acc[r] = total[r];
}

}  // namespace
}  // namespace quantd
