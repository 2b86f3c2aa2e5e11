// The formats of the types with super-blocks of 256 weights for the loops of ../panel.h: how the blocks of
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

// Fields of BlockQ8_256, and of its part behind the quants.
constexpr int64_t kActBytes = sizeof(BlockQ8_256), kActTail = 256;
constexpr int64_t kTailSums = 0, kTailScale = 32, kTailGroupSums = 36, kTailOffsets = 64, kTailBytes = 128;

__m256i words(__m256i x, int count) { return _mm256_srli_epi16(x, count); }
__m256i mask(__m256i x, int bits) { return _mm256_and_si256(x, _mm256_set1_epi8(static_cast<char>(bits))); }

// Byte `first` of each dword in its low word and byte `second` in its high word.
__m256i pick_bytes(__m256i dwords, int first, int second) {
    const int pattern = first | 0x80 << 8 | second << 16 | 0x80 << 24;
    const __m256i at = _mm256_setr_epi32(pattern, pattern + 0x040004, pattern + 0x080008, pattern + 0x0c000c,
                                         pattern, pattern + 0x040004, pattern + 0x080008, pattern + 0x0c000c);
    return _mm256_shuffle_epi8(dwords, at);
}

// Byte `at` of each dword, with its sign, in both words.
__m256i pick_signed(__m256i dwords, int at) {
    return _mm256_srai_epi16(_mm256_slli_epi16(pick_bytes(dwords, at, at), 8), 8);
}

// Two words of one activation times two words of each weight row.
__m256i add_pairs(__m256i sum, __m256i weights, const uint8_t* act) {
    return add_products(sum, weights, broadcast32(act));
}

// sum_j scale[j] * sums[j] over the sixteen sums of 16 activations.
__m256i scaled_sums(const __m256i* scale, const uint8_t* tail) {
    __m256i sum = _mm256_setzero_si256();
    for (int pair = 0; pair < 8; ++pair) {
        const __m256i both = _mm256_blend_epi16(scale[2 * pair], scale[2 * pair + 1], 0xaa);
        sum = add_pairs(sum, both, tail + kTailSums + 4 * pair);
    }
    return sum;
}

__m256 multiply_add(__m256 d, const uint8_t* tail, __m256i sum, __m256 acc) {
    return _mm256_fmadd_ps(_mm256_mul_ps(d, broadcast_float(tail + kTailScale)), _mm256_cvtepi32_ps(sum),
                           acc);
}

// ---- formats
// ---------------------------------------------------------------------------------------------------
//
// A Format has
//     Header                    scales (each in both words of a lane), minima and floats of eight rows
//     decode(rows, Header&)
//     unpack(rows, q)           quants of eight rows: q[i / 4] holds elements i to i + 3 of each; of a signed
//                               type twice as many vectors, see multiply_dwords
//     quants(block, group)      32 quants of one row as they lie
//     kScaleElements            elements of one scale
//     kSteps                    steps of four elements whose words add up without overflow
//     kOffsetBits               quants are stored with 1 << kOffsetBits added; 0: nothing added
//     kWrap                     the panel's words may overflow and come right when the offset, 32, is taken
//                               off: see BlockQ8_256::minus_32_sums
//     kSigned                   quants with all eight bits
//     finish(acc, sum, Header, tail)

// What the types of unsigned quants share.
struct Unsigned {
    static constexpr int kOffsetBits = 0;
    static constexpr bool kWrap = false, kSigned = false;
};

// Scales and minima of Q4_K and Q5_K.
struct ScaleMin : Unsigned {
    static constexpr int kScaleElements = 32;
    struct Header {
        __m256i scale[8];
        __m256i min[4];  // minima 2p and 2p + 1
        __m256 d, dmin;
    };

    static void decode(const Rows& rows, Header& out) {
        __m256i dwords[4];  // d and dmin; the twelve packed bytes
        transpose_dwords_16(rows, 0, dwords);
        const __m256i low = _mm256_and_si256(dwords[0], _mm256_set1_epi32(0xffff));
        const __m256i halves =
            _mm256_permute4x64_epi64(_mm256_packus_epi32(low, _mm256_srli_epi32(dwords[0], 16)), 0xd8);
        out.d = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
        out.dmin = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
        const __m256i scales[2] = {mask(dwords[1], 0x3f),
                                   _mm256_or_si256(mask(dwords[3], 0x0f), mask(words(dwords[1], 2), 0x30))};
        const __m256i mins[2] = {mask(dwords[2], 0x3f), _mm256_or_si256(mask(words(dwords[3], 4), 0x0f),
                                                                        mask(words(dwords[2], 2), 0x30))};
        for (int j = 0; j < 8; ++j) out.scale[j] = pick_bytes(scales[j / 4], j % 4, j % 4);
        for (int p = 0; p < 4; ++p) out.min[p] = pick_bytes(mins[p / 2], p % 2 * 2, p % 2 * 2 + 1);
    }

    static __m256 finish(__m256 acc, __m256i sum, const Header& header, const uint8_t* tail) {
        __m256i min_sum = _mm256_madd_epi16(header.min[0], broadcast32(tail + kTailGroupSums));
        for (int p = 1; p < 4; ++p)
            min_sum = add_pairs(min_sum, header.min[p], tail + kTailGroupSums + 4 * p);
        const __m256 dmin = _mm256_mul_ps(header.dmin, broadcast_float(tail + kTailScale));
        return _mm256_fnmadd_ps(dmin, _mm256_cvtepi32_ps(min_sum), multiply_add(header.d, tail, sum, acc));
    }
};

struct Q4K : ScaleMin {
    static constexpr int64_t kBytes = sizeof(BlockQ4_K);
    static constexpr int kSteps = 8;  // 16 * 15 * 127 < 2^15

    static void unpack(const Rows& rows, __m256i* q) {
        for (int chunk = 0; chunk < 4; ++chunk, q += 16) {
            __m256i packed[8];
            transpose_dwords_32(rows, 16 + 32 * chunk, packed);
            for (int j = 0; j < 8; ++j) {
                q[j] = mask(packed[j], 0x0f);
                q[j + 8] = mask(words(packed[j], 4), 0x0f);
            }
        }
    }
    static __m256i quants(const uint8_t* block, int group) {
        const __m256i packed = load256(block + 16 + group / 2 * 32);
        return mask(group % 2 ? words(packed, 4) : packed, 0x0f);
    }
};

struct Q5K : ScaleMin {
    static constexpr int64_t kBytes = sizeof(BlockQ5_K);
    static constexpr int kSteps = 4;  // 8 * 31 * 127 < 2^15

    static void unpack(const Rows& rows, __m256i* q) {
        __m256i high[8];
        transpose_dwords_32(rows, 16, high);
        for (int chunk = 0; chunk < 4; ++chunk, q += 16) {
            __m256i packed[8];
            transpose_dwords_32(rows, 48 + 32 * chunk, packed);
            for (int j = 0; j < 8; ++j) {
                q[j] = _mm256_or_si256(mask(packed[j], 0x0f), high_bit(high[j], 2 * chunk));
                q[j + 8] = _mm256_or_si256(mask(words(packed[j], 4), 0x0f), high_bit(high[j], 2 * chunk + 1));
            }
        }
    }
    static __m256i quants(const uint8_t* block, int group) {
        const __m256i packed = load256(block + 48 + group / 2 * 32);
        const __m256i low = mask(group % 2 ? words(packed, 4) : packed, 0x0f);
        return _mm256_or_si256(low, high_bit(load256(block + 16), group));
    }
    // Bit `group` of every byte, moved to bit 4.
    static __m256i high_bit(__m256i bits, int group) {
        return mask(group < 4 ? _mm256_slli_epi16(bits, 4 - group) : words(bits, group - 4), 0x10);
    }
};

// Scales of 16 elements each.
struct ByteScales : Unsigned {
    static constexpr int kScaleElements = 16;
    static constexpr int kSteps = 4;
    struct Header {
        __m256i scale[16];
        __m256 d;
    };
    static __m256 finish(__m256 acc, __m256i sum, const Header& header, const uint8_t* tail) {
        return multiply_add(header.d, tail, sum, acc);
    }
};

struct Q6K : ByteScales {
    static constexpr int64_t kBytes = sizeof(BlockQ6_K);
    static constexpr int kOffsetBits = 5;
    static constexpr bool kWrap = true;  // 8 * 32 * 127 < 2^15, but not with 63 in place of 32

    static void decode(const Rows& rows, Header& out) {
        __m256i dwords[4];
        transpose_dwords_16(rows, 192, dwords);
        for (int j = 0; j < 16; ++j) out.scale[j] = pick_signed(dwords[j / 4], j % 4);
        out.d = gather_f16(rows, 208);
    }
    static void unpack(const Rows& rows, __m256i* q) {
        for (int half = 0; half < 2; ++half, q += 32) {
            __m256i low[16], high[8];
            transpose_dwords_32(rows, 64 * half, low);
            transpose_dwords_32(rows, 64 * half + 32, low + 8);
            transpose_dwords_32(rows, 128 + 32 * half, high);
            for (int j = 0; j < 8; ++j) {
                q[j] = combine(low[j], high[j], 0);
                q[j + 8] = combine(low[j + 8], high[j], 1);
                q[j + 16] = combine(low[j], high[j], 2);
                q[j + 24] = combine(low[j + 8], high[j], 3);
            }
        }
    }
    static __m256i quants(const uint8_t* block, int group) {
        const int half = group / 4, quarter = group % 4;
        return combine(load256(block + 64 * half + 32 * (quarter % 2)), load256(block + 128 + 32 * half),
                       quarter);
    }
    // The nibbles and the two bits of one quarter of 128 elements.
    static __m256i combine(__m256i low, __m256i high, int quarter) {
        const __m256i moved = quarter == 0   ? _mm256_slli_epi16(high, 4)
                              : quarter == 1 ? _mm256_slli_epi16(high, 2)
                              : quarter == 2 ? high
                                             : words(high, 2);
        return _mm256_or_si256(mask(quarter / 2 ? words(low, 4) : low, 0x0f), mask(moved, 0x30));
    }
};

// The two-bit quants of Q2_K and Q3_K.
void unpack_two_bits(const Rows& rows, int64_t offset, __m256i* q) {
    for (int half = 0; half < 2; ++half, q += 32) {
        __m256i packed[8];
        transpose_dwords_32(rows, offset + 32 * half, packed);
        for (int j = 0; j < 8; ++j) {
            for (int quarter = 0; quarter < 4; ++quarter)
                q[j + 8 * quarter] = mask(words(packed[j], 2 * quarter), 3);
        }
    }
}
__m256i two_bits(const uint8_t* qs, int group) {
    return mask(words(load256(qs + group / 4 * 32), group % 4 * 2), 3);
}

struct Q2K : ByteScales {
    static constexpr int64_t kBytes = sizeof(BlockQ2_K);
    struct Header {
        __m256i scale[16];
        __m256i min[8];  // minima 2p and 2p + 1
        __m256 d, dmin;
    };

    static void decode(const Rows& rows, Header& out) {
        __m256i dwords[4];
        transpose_dwords_16(rows, 0, dwords);
        for (int j = 0; j < 16; ++j) out.scale[j] = pick_bytes(mask(dwords[j / 4], 0x0f), j % 4, j % 4);
        for (int p = 0; p < 8; ++p) {
            const __m256i mins = mask(words(dwords[p / 2], 4), 0x0f);
            out.min[p] = pick_bytes(mins, p % 2 * 2, p % 2 * 2 + 1);
        }
        out.d = gather_f16(rows, 80);
        out.dmin = gather_f16(rows, 82);
    }
    static void unpack(const Rows& rows, __m256i* q) { unpack_two_bits(rows, 16, q); }
    static __m256i quants(const uint8_t* block, int group) { return two_bits(block + 16, group); }
    static __m256 finish(__m256 acc, __m256i sum, const Header& header, const uint8_t* tail) {
        __m256i min_sum = _mm256_madd_epi16(header.min[0], broadcast32(tail + kTailSums));
        for (int p = 1; p < 8; ++p) min_sum = add_pairs(min_sum, header.min[p], tail + kTailSums + 4 * p);
        const __m256 dmin = _mm256_mul_ps(header.dmin, broadcast_float(tail + kTailScale));
        return _mm256_fnmadd_ps(dmin, _mm256_cvtepi32_ps(min_sum), multiply_add(header.d, tail, sum, acc));
    }
};

struct Q3K : ByteScales {
    static constexpr int64_t kBytes = sizeof(BlockQ3_K);
    static constexpr int kOffsetBits = 2;

    static void decode(const Rows& rows, Header& out) {
        __m256i both[4], dwords[4];  // twelve bytes of scales and d: the last 14 of the block
        for (int i = 0; i < 4; ++i) {
            const __m256i last16 = _mm256_inserti128_si256(_mm256_castsi128_si256(load128(rows[i] + 94)),
                                                           load128(rows[i + 4] + 94), 1);
            both[i] = _mm256_srli_si256(last16, 2);
        }
        transpose_4x4(both, dwords);
        for (int j = 0; j < 4; ++j) {
            const __m256i low = mask(words(dwords[j % 2], j / 2 * 4), 0x0f);
            const __m256i high = _mm256_slli_epi16(mask(words(dwords[2], 2 * j), 3), 4);
            const __m256i four = _mm256_sub_epi8(_mm256_or_si256(low, high), _mm256_set1_epi8(32));
            for (int i = 0; i < 4; ++i) out.scale[4 * j + i] = pick_signed(four, i);
        }
        out.d = gather_f16(rows, 108);
    }
    static void unpack(const Rows& rows, __m256i* q) {
        unpack_two_bits(rows, 32, q);
        __m256i high[8];
        transpose_dwords_32(rows, 0, high);
        for (int group = 0; group < 8; ++group) {
            for (int j = 0; j < 8; ++j)
                q[8 * group + j] = _mm256_or_si256(q[8 * group + j], high_bit(high[j], group));
        }
    }
    static __m256i quants(const uint8_t* block, int group) {
        return _mm256_or_si256(two_bits(block + 32, group), high_bit(load256(block), group));
    }
    // Bit `group` of every byte, moved to bit 2.
    static __m256i high_bit(__m256i bits, int group) {
        return mask(group < 2 ? _mm256_slli_epi16(bits, 2 - group) : words(bits, group - 2), 4);
    }
};

struct Iq4Xs {
    static constexpr int64_t kBytes = sizeof(BlockIQ4_XS);
    static constexpr int kScaleElements = 32, kSteps = 8, kOffsetBits = 0;
    static constexpr bool kWrap = false, kSigned = true;
    struct Header {
        __m256i scale[8];
        __m256 d;
    };

    static void decode(const Rows& rows, Header& out) {
        int32_t first[kLanes], second[kLanes];  // d and scales_h; scales_l
        for (int i = 0; i < kLanes; ++i) {
            __builtin_memcpy(&first[i], rows[i], 4);
            __builtin_memcpy(&second[i], rows[i] + 4, 4);
        }
        const __m256i high_bits = _mm256_srli_epi32(
            _mm256_setr_epi32(first[0], first[1], first[2], first[3], first[4], first[5], first[6], first[7]),
            16);
        const __m256i low_bits = _mm256_setr_epi32(second[0], second[1], second[2], second[3],  //
                                                   second[4], second[5], second[6], second[7]);
        for (int j = 0; j < 8; ++j) {
            const __m256i low = _mm256_and_si256(_mm256_srli_epi32(low_bits, 4 * j), _mm256_set1_epi32(0x0f));
            const __m256i high = _mm256_and_si256(_mm256_srli_epi32(high_bits, 2 * j), _mm256_set1_epi32(3));
            const __m256i scale =
                _mm256_sub_epi32(_mm256_or_si256(low, _mm256_slli_epi32(high, 4)), _mm256_set1_epi32(32));
            out.scale[j] = _mm256_blend_epi16(scale, _mm256_slli_epi32(scale, 16), 0xaa);
        }
        out.d = gather_f16(rows, 0);
    }
    static __m256i look_up(__m256i nibbles) {
        const __m128i book = load128(reinterpret_cast<const uint8_t*>(kIq4Values));
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(book), nibbles);
    }
    // Words: see multiply_dwords.
    static void unpack(const Rows& rows, __m256i* q) {
        for (int group = 0; group < 8; ++group, q += 16) {
            __m256i packed[4];
            transpose_dwords_16(rows, 8 + 16 * group, packed);
            for (int j = 0; j < 4; ++j) {
                const __m256i low = look_up(mask(packed[j], 0x0f));
                const __m256i high = look_up(mask(words(packed[j], 4), 0x0f));
                q[2 * j] = even_words(low);
                q[2 * j + 1] = odd_words(low);
                q[2 * j + 8] = even_words(high);
                q[2 * j + 9] = odd_words(high);
            }
        }
    }
    static __m256i quants(const uint8_t* block, int group) {
        const __m128i packed = load128(block + 8 + 16 * group);
        return look_up(mask(_mm256_setr_m128i(packed, _mm_srli_epi16(packed, 4)), 0x0f));
    }
    static __m256 finish(__m256 acc, __m256i sum, const Header& header, const uint8_t* tail) {
        return multiply_add(header.d, tail, sum, acc);
    }
};

}  // namespace
}  // namespace quantd
