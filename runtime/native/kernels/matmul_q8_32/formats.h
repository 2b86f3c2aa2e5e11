// The formats of the types with blocks of 32 weights for the loops of ../panel.h: how the blocks of
// eight weight rows become vectors, and what a block's sums add to the outputs.
//
// Everything here has internal linkage: each level that includes it gets a copy compiled with its own flags.
// Include it from kernel files of levels with AVX2 only.
#pragma once

#include <immintrin.h>

#include "blocks.h"
#include "kernels/panel.h"

namespace quantd {
namespace {

__m256i mask(__m256i x, int bits) { return _mm256_and_si256(x, _mm256_set1_epi8(static_cast<char>(bits))); }
__m256i high_nibbles(__m256i x) { return mask(_mm256_srli_epi16(x, 4), 0x0f); }

__m256i look_up(__m256i book, __m256i nibbles) { return _mm256_shuffle_epi8(book, nibbles); }
__m256i book_of(const int8_t* values, int offset) {
    const __m128i book = load128(reinterpret_cast<const uint8_t*>(values));
    return _mm256_broadcastsi128_si256(_mm_add_epi8(book, _mm_set1_epi8(static_cast<char>(offset))));
}

// 16 bytes of nibbles of one block: the low nibbles, then the high ones.
__m256i nibbles(const uint8_t* p) {
    const __m128i packed = load128(p);
    return mask(_mm256_setr_m128i(packed, _mm_srli_epi16(packed, 4)), 0x0f);
}

// The same of eight rows: out[j] holds elements 4 * j to 4 * j + 3 of each.
void unpack_nibbles(const Rows& rows, int64_t offset, __m256i* out) {
    __m256i packed[4];
    transpose_dwords_16(rows, offset, packed);
    for (int j = 0; j < 4; ++j) {
        out[j] = mask(packed[j], 0x0f);
        out[j + 4] = high_nibbles(packed[j]);
    }
}

__m256i dwords_of(const Rows& rows, int64_t offset) {
    int32_t value[kLanes];
    for (int i = 0; i < kLanes; ++i) __builtin_memcpy(&value[i], rows[i] + offset, 4);
    return _mm256_setr_epi32(value[0], value[1], value[2], value[3], value[4], value[5], value[6], value[7]);
}

// ---- formats: d * (u - kOffset) + m, with unsigned u unless kSigned
// ---------------------------------------------
//
// A Format has
//     kSteps                    steps of four elements whose words add up without overflow: at 8, 16 * u *
//                               127 < 2^15
//     scales(rows), mins(rows)
//     quants(block)             32 quants of one row
//     unpack(rows, q)           of eight rows: four elements of each a vector; of a signed type as even and
//                               odd words

template <typename Block, int kTheOffset, int kTheSteps, bool kMin = false>
struct Common {
    static constexpr int64_t kBytes = sizeof(Block);
    static constexpr int kOffset = kTheOffset, kSteps = kTheSteps;
    static constexpr bool kHasMin = kMin, kSigned = false;
    static __m256 scales(const Rows& rows) { return gather_f16(rows, 0); }
    static __m256 mins(const Rows& rows) { return gather_f16(rows, 2); }
};

template <typename Block, int kTheOffset, bool kMin, int64_t kQs>
struct Four : Common<Block, kTheOffset, 8, kMin> {
    static __m256i quants(const uint8_t* p) { return nibbles(p + kQs); }
    static void unpack(const Rows& rows, __m256i* q) { unpack_nibbles(rows, kQs, q); }
};
using Q4_0 = Four<BlockQ4_0, 8, false, 2>;
using Q4_1 = Four<BlockQ4_1, 0, true, 4>;

template <typename Block, int kTheOffset, bool kMin, int64_t kHigh>
struct Five : Common<Block, kTheOffset, 4, kMin> {
    static __m256i quants(const uint8_t* p) {
        int32_t bits;
        __builtin_memcpy(&bits, p + kHigh, 4);
        const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                                2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
        const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread);
        const __m256i select = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201u));
        const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, select), select);
        return _mm256_or_si256(nibbles(p + kHigh + 4), mask(set, 16));
    }
    static void unpack(const Rows& rows, __m256i* q) {
        unpack_nibbles(rows, kHigh + 4, q);
        const __m256i bits = dwords_of(rows, kHigh);
        for (int j = 0; j < 8; ++j) {
            // Bits 4 * j to 4 * j + 3, one to a byte, times 16: a multiplication puts copies 7 bits apart.
            const __m256i four = _mm256_and_si256(_mm256_srli_epi32(bits, 4 * j), _mm256_set1_epi32(0x0f));
            const __m256i spread = _mm256_mullo_epi32(four, _mm256_set1_epi32(0x00204081));
            q[j] = _mm256_or_si256(q[j], mask(_mm256_slli_epi32(mask(spread, 1), 4), 16));
        }
    }
};
using Q5_0 = Five<BlockQ5_0, 16, false, 2>;
using Q5_1 = Five<BlockQ5_1, 0, true, 4>;

struct Mxfp4 : Common<BlockMXFP4, 12, 4> {
    static __m256 scales(const Rows& rows) {
        uint8_t e8[kLanes];
        for (int i = 0; i < kLanes; ++i) e8[i] = rows[i][0];
        const __m256i e = _mm256_setr_epi32(e8[0], e8[1], e8[2], e8[3], e8[4], e8[5], e8[6], e8[7]);
        const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
        const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
        const __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
        return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, small));
    }
    static __m256i quants(const uint8_t* p) { return look_up(book_of(kMxfp4Values, 12), nibbles(p + 1)); }
    static void unpack(const Rows& rows, __m256i* q) {
        unpack_nibbles(rows, 1, q);
        for (int j = 0; j < 8; ++j) q[j] = look_up(book_of(kMxfp4Values, 12), q[j]);
    }
};

template <typename Block>
struct Signed : Common<Block, 0, 8> {
    static constexpr bool kSigned = true;
};

struct Q8_0 : Signed<BlockQ8_0> {
    static __m256i quants(const uint8_t* p) { return load256(p + 2); }
    static void unpack(const Rows& rows, __m256i* q) {
        __m256i bytes[8];
        transpose_dwords_32(rows, 2, bytes);
        for (int j = 0; j < 8; ++j) {
            q[2 * j] = even_words(bytes[j]);
            q[2 * j + 1] = odd_words(bytes[j]);
        }
    }
};

struct Iq4Nl : Signed<BlockIQ4_NL> {
    static __m256i quants(const uint8_t* p) { return look_up(book_of(kIq4Values, 0), nibbles(p + 2)); }
    static void unpack(const Rows& rows, __m256i* q) {
        __m256i index[8];
        unpack_nibbles(rows, 2, index);
        for (int j = 0; j < 8; ++j) {
            const __m256i bytes = look_up(book_of(kIq4Values, 0), index[j]);
            q[2 * j] = even_words(bytes);
            q[2 * j + 1] = odd_words(bytes);
        }
    }
};

}  // namespace
}  // namespace quantd
