// Matmul of the types with super-blocks of 256 weights with Q8_256 activations, 512 bits wide.
//
// 64 packed bytes give two vectors of unsigned quants that meet 64 consecutive activations (kGroupOrder), so
// one vpdpbusd takes 64 products to 16 sums of four.  Each sum fits 16 bits, so vpdpwssd multiplies it by its
// sub-block's scale and adds up.  One float multiply-add per super-block and activation row follows.  The
// weights of a super-block are unpacked once for up to eight activation rows; the order of operations for
// one row does not depend on how many share them.
#include <immintrin.h>

#include "blocks.h"
#include "kernels/levels.h"
#include "kernels/tile.h"

namespace quantd::avx512vnni {
namespace {

constexpr int64_t kPrefetchBytes = 2048;

// Fields of BlockQ8_256.
constexpr int64_t kActBytes = 384, kActSums = 256, kActScale = 288;

__m512i load512(const uint8_t* p) { return _mm512_loadu_si512(p); }

__m512 broadcast_f16(const uint8_t* p) {
    uint16_t half;
    __builtin_memcpy(&half, p, 2);
    return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(half)));
}

// Bytes 0-7: the eight 6-bit scales; bytes 8-15: the eight 6-bit minima.  header: d, dmin and the 12 packed
// bytes.
__m128i unpack_scales(__m128i header) {
    const __m128i low =
        _mm_shuffle_epi8(header, _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m128i high =
        _mm_shuffle_epi8(header, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
    const __m128i low_mask = _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f);
    const __m128i low_bits = _mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 0, 4)), low_mask);
    const __m128i high_bits = _mm_and_si128(_mm_srli_epi16(high, 2), _mm_set1_epi8(0x30));
    return _mm_or_si128(low_bits, high_bits);
}

// A control that spreads byte `a` over the low halves and byte `b` over the high halves of a vector of
// dwords.
__m512i spread(int a, int b) {
    const __m256i low = _mm256_set1_epi32(static_cast<int>(0xffffff00u | unsigned(a)));
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffffff00u | unsigned(b)));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// Sum over four vectors of scale * (quants . activations), 16 lanes.
__m512i scaled_dot(__m512i sum, const __m512i* q, const __m512i* scale, const uint8_t* act) {
    const __m512i zero = _mm512_setzero_si512();
    for (int v = 0; v < 4; ++v) {
        const __m512i part = _mm512_dpbusd_epi32(zero, q[v], load512(act + 64 * v));
        sum = _mm512_dpwssd_epi32(sum, part, scale[v]);
    }
    return sum;
}

// Thirty-two bytes in both halves.
__m512i twice(const uint8_t* p) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// Scales, minima and floats of Q4_K and Q5_K.
struct ScaleMin {
    __m512i scale[4];
    __m256i mins;  // (16) int16, each of the eight minima twice, to meet the sums of 16
    __m512 d, dmin;

    explicit ScaleMin(const uint8_t* block) {
        const __m128i header = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block));
        const __m512i bytes = _mm512_broadcast_i32x4(unpack_scales(header));
        scale[0] = _mm512_shuffle_epi8(bytes, spread(0, 2));
        scale[1] = _mm512_shuffle_epi8(bytes, spread(1, 3));
        scale[2] = _mm512_shuffle_epi8(bytes, spread(4, 6));
        scale[3] = _mm512_shuffle_epi8(bytes, spread(5, 7));
        const __m256i each_twice =
            _mm256_setr_epi8(8, -1, 8, -1, 9, -1, 9, -1, 10, -1, 10, -1, 11, -1, 11, -1,  //
                             12, -1, 12, -1, 13, -1, 13, -1, 14, -1, 14, -1, 15, -1, 15, -1);
        mins = _mm256_shuffle_epi8(_mm512_castsi512_si256(bytes), each_twice);
        d = broadcast_f16(block);
        dmin = broadcast_f16(block + 2);
    }

    // d * sum(scale * q * a) - dmin * sum(min * a), still to be multiplied by the scale of the activations.
    __m512 dot(const __m512i* q, const uint8_t* act) const {
        const __m512i sum = scaled_dot(_mm512_setzero_si512(), q, scale, act);
        const __m256i sums = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(act + kActSums));
        const __m512i min_sum = _mm512_zextsi256_si512(_mm256_madd_epi16(mins, sums));
        const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), d);
        return _mm512_fnmadd_ps(_mm512_cvtepi32_ps(min_sum), dmin, value);
    }
};

struct Q4K {
    static constexpr int64_t kBytes = sizeof(BlockQ4_K);
    __m512i q[4];
    ScaleMin scales;

    explicit Q4K(const uint8_t* block) : scales(block) {
        const __m512i nibble = _mm512_set1_epi8(0x0f);
        for (int half = 0; half < 2; ++half) {
            const __m512i packed = load512(block + 16 + 64 * half);
            q[2 * half] = _mm512_and_si512(packed, nibble);
            q[2 * half + 1] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble);
        }
    }
    __m512 dot(const uint8_t* act) const { return scales.dot(q, act); }
};

struct Q5K {
    static constexpr int64_t kBytes = sizeof(BlockQ5_K);
    __m512i q[4];
    ScaleMin scales;

    explicit Q5K(const uint8_t* block) : scales(block) {
        const __m512i nibble = _mm512_set1_epi8(0x0f), sixteen = _mm512_set1_epi8(16);
        const __m512i high = twice(block + 16);
        for (int half = 0; half < 2; ++half) {
            const __m512i packed = load512(block + 48 + 64 * half);
            const __m512i low_bit = pair_of_bits(4 * half), high_bit = pair_of_bits(4 * half + 1);
            const __m512i even = _mm512_and_si512(packed, nibble);
            const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble);
            q[2 * half] = _mm512_mask_add_epi8(even, _mm512_test_epi8_mask(high, low_bit), even, sixteen);
            q[2 * half + 1] = _mm512_mask_add_epi8(odd, _mm512_test_epi8_mask(high, high_bit), odd, sixteen);
        }
    }
    __m512 dot(const uint8_t* act) const { return scales.dot(q, act); }

    // Bit `bit` in the bytes of the low half, bit + 2 in those of the high half.
    static __m512i pair_of_bits(int bit) {
        const __m256i low = _mm256_set1_epi8(static_cast<char>(1u << bit));
        const __m256i high = _mm256_set1_epi8(static_cast<char>(4u << bit));
        return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
};

// Dwords `low` in the low half, `high` in the high half.
__m512i halves(int low, int high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set1_epi32(low)), _mm256_set1_epi32(high), 1);
}

// Signed scales of 16 elements each, spread to meet the sums of four products, and what the types that have
// them share: d * sum((scale * q + offset) * a), where the offsets make up for quants that were stored
// unsigned.
struct WordScales {
    __m512i scale[4];
    __m256i offset;  // (16) int16
    __m512 d;

    // words: the sixteen scales, int16.
    void set(__m256i words, __m256i offset_words, const uint8_t* d_half) {
        const __m512i wide = _mm512_zextsi256_si512(words);
        scale[0] = spread_words(wide, 0, 4);
        scale[1] = spread_words(wide, 2, 6);
        scale[2] = spread_words(wide, 8, 12);
        scale[3] = spread_words(wide, 10, 14);
        offset = offset_words;
        d = broadcast_f16(d_half);
    }
    // In the low words of 16 dwords: scale a four times, a + 1 four times, then b and b + 1.  The high words
    // are zero.
    static __m512i spread_words(__m512i words, int a, int b) {
        const int c = a + 1, e = b + 1;
        const __m512i index = _mm512_setr_epi32(a, a, a, a, c, c, c, c, b, b, b, b, e, e, e, e);
        return _mm512_maskz_permutexvar_epi16(0x55555555, index, words);
    }
    // The sum of offset * a, in 8 of 16 lanes.
    __m512i start(const uint8_t* act) const {
        const __m256i sums = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(act + kActSums));
        return _mm512_zextsi256_si512(_mm256_madd_epi16(offset, sums));
    }
    __m512 dot(const __m512i* q, const uint8_t* act) const {
        return _mm512_mul_ps(_mm512_cvtepi32_ps(scaled_dot(start(act), q, scale, act)), d);
    }
};

struct Q6K {
    static constexpr int64_t kBytes = sizeof(BlockQ6_K);
    __m512i q[4];
    WordScales scales;

    explicit Q6K(const uint8_t* block) {
        for (int half = 0; half < 2; ++half) {
            const __m512i high = twice(block + 128 + 32 * half);
            const __m512i even = twice(block + 64 * half), odd = twice(block + 64 * half + 32);
            // Low halves: groups 0 and 1, from the low nibbles and bits 0-3; high halves: groups 2 and 3.
            q[2 * half] = combine(even, _mm512_sllv_epi32(high, halves(4, 0)));
            q[2 * half + 1] = combine(odd, _mm512_rolv_epi32(high, halves(2, 30)));
        }
        const __m256i words =
            _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 192)));
        scales.set(words, _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(words, 5)), block + 208);
    }
    // Low nibbles in the low half and high nibbles in the high half, with two bits of `high` above them.
    static __m512i combine(__m512i low, __m512i high) {
        const __m512i nibbles =
            _mm512_and_si512(_mm512_srlv_epi32(low, halves(0, 4)), _mm512_set1_epi8(0x0f));
        return _mm512_or_si512(nibbles, _mm512_and_si512(high, _mm512_set1_epi8(0x30)));
    }
    __m512 dot(const uint8_t* act) const { return scales.dot(q, act); }
};

// The two-bit quants of Q2_K and Q3_K.
void unpack_two_bits(const uint8_t* qs, __m512i* q) {
    const __m512i three = _mm512_set1_epi8(3);
    for (int half = 0; half < 2; ++half) {
        const __m512i packed = twice(qs + 32 * half);
        q[2 * half] = _mm512_and_si512(_mm512_srlv_epi32(packed, halves(0, 4)), three);
        q[2 * half + 1] = _mm512_and_si512(_mm512_srlv_epi32(packed, halves(2, 6)), three);
    }
}

struct Q2K {
    static constexpr int64_t kBytes = sizeof(BlockQ2_K);
    __m512i q[4];
    WordScales scales;  // the minima in place of the offsets
    __m512 dmin;

    explicit Q2K(const uint8_t* block) : dmin(broadcast_f16(block + 82)) {
        unpack_two_bits(block + 16, q);
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block));
        const __m128i nibble = _mm_set1_epi8(0x0f);
        const __m128i mins = _mm_and_si128(_mm_srli_epi16(packed, 4), nibble);
        scales.set(_mm256_cvtepu8_epi16(_mm_and_si128(packed, nibble)), _mm256_cvtepu8_epi16(mins),
                   block + 80);
    }
    __m512 dot(const uint8_t* act) const {
        const __m512i sum = scaled_dot(_mm512_setzero_si512(), q, scales.scale, act);
        const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scales.d);
        return _mm512_fnmadd_ps(_mm512_cvtepi32_ps(scales.start(act)), dmin, value);
    }
};

struct Q3K {
    static constexpr int64_t kBytes = sizeof(BlockQ3_K);
    __m512i q[4];
    WordScales scales;

    explicit Q3K(const uint8_t* block) {
        unpack_two_bits(block + 32, q);
        const __m512i high = twice(block), four = _mm512_set1_epi8(4);
        for (int v = 0; v < 4; ++v) {
            const __m512i bits = Q5K::pair_of_bits(v / 2 * 4 + v % 2);
            q[v] = _mm512_mask_add_epi8(q[v], _mm512_test_epi8_mask(high, bits), q[v], four);
        }
        int64_t low_bytes;
        int32_t high_bytes;
        __builtin_memcpy(&low_bytes, block + 96, 8);
        __builtin_memcpy(&high_bytes, block + 104, 4);
        const __m128i pairs = _mm_set_epi64x(low_bytes >> 4, low_bytes);
        const __m128i low = _mm_and_si128(pairs, _mm_set1_epi8(0x0f));
        const __m128i shifted = _mm_srlv_epi32(_mm_set1_epi32(high_bytes), _mm_setr_epi32(0, 2, 4, 6));
        const __m128i top = _mm_slli_epi16(_mm_and_si128(shifted, _mm_set1_epi8(3)), 4);
        const __m128i bytes = _mm_sub_epi8(_mm_or_si128(low, top), _mm_set1_epi8(32));
        const __m256i words = _mm256_cvtepi8_epi16(bytes);
        scales.set(words, _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(words, 2)), block + 108);
    }
    __m512 dot(const uint8_t* act) const { return scales.dot(q, act); }
};

struct Iq4Xs {
    static constexpr int64_t kBytes = sizeof(BlockIQ4_XS);
    __m512i q[4];  // code book values + 128: their sums of four products do not fit 16 bits
    WordScales scales;

    explicit Iq4Xs(const uint8_t* block) {
        const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kIq4Values));
        const __m512i book = _mm512_broadcast_i32x4(_mm_xor_si128(values, _mm_set1_epi8(-128)));
        for (int v = 0; v < 4; ++v) {
            const uint8_t* first = block + 8 + 64 * (v / 2) + 16 * (v % 2);
            q[v] = _mm512_shuffle_epi8(book, nibbles(first, first + 32));
        }
        uint16_t high_bits;
        int32_t low_bits;
        __builtin_memcpy(&high_bits, block + 2, 2);
        __builtin_memcpy(&low_bits, block + 4, 4);
        // Sixteen words: each of the eight scales twice.
        const __m256i low =
            _mm256_srlv_epi16(_mm256_cvtepu8_epi16(_mm_shuffle_epi8(_mm_cvtsi32_si128(low_bits),
                                                                    _mm_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1,  //
                                                                                  2, 2, 2, 2, 3, 3, 3, 3))),
                              _mm256_setr_epi16(0, 0, 4, 4, 0, 0, 4, 4, 0, 0, 4, 4, 0, 0, 4, 4));
        const __m256i high =
            _mm256_srlv_epi16(_mm256_set1_epi16(static_cast<short>(high_bits)),
                              _mm256_setr_epi16(0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14));
        const __m256i top = _mm256_slli_epi16(_mm256_and_si256(high, _mm256_set1_epi16(3)), 4);
        const __m256i both = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi16(0x0f)), top);
        const __m256i words = _mm256_sub_epi16(both, _mm256_set1_epi16(32));
        scales.set(words, _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16(words, 7)), block);
        // Whole dwords, signs included, for a 32-bit multiplication.
        for (auto& scale : scales.scale) scale = _mm512_srai_epi32(_mm512_slli_epi32(scale, 16), 16);
    }
    // Low and high nibbles of 16 bytes in the low half, of another 16 in the high half.
    static __m512i nibbles(const uint8_t* first, const uint8_t* second) {
        auto both = [](const uint8_t* p) {
            const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
            return _mm256_set_m128i(_mm_srli_epi16(packed, 4), packed);
        };
        const __m512i all = _mm512_inserti64x4(_mm512_castsi256_si512(both(first)), both(second), 1);
        return _mm512_and_si512(all, _mm512_set1_epi8(0x0f));
    }
    __m512 dot(const uint8_t* act) const {
        __m512i sum = scales.start(act);
        for (int v = 0; v < 4; ++v) {
            const __m512i part = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q[v], load512(act + 64 * v));
            sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(part, scales.scale[v]));
        }
        return _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scales.d);
    }
};

template <class Format>
struct Kernel {
    using Acc = __m512;
    static constexpr int kRows = 8, kOuts = 1;
    static constexpr int64_t kChunkUnits = 4;  // super-blocks

    static int64_t units(int64_t n_in) { return n_in / kQ256; }
    static Acc zero() { return _mm512_setzero_ps(); }
    static float total(const Acc& acc) { return _mm512_reduce_add_ps(acc); }

    template <int kTileOuts, int kTileRows>
    static void dot(const Dot& tile, Acc* out) {
        static_assert(kTileOuts == 1);
        __m512 acc[kTileRows];
        for (int r = 0; r < kTileRows; ++r) acc[r] = out[r];
        for (int64_t b = tile.begin; b < tile.end; ++b) {
            const uint8_t* block = tile.weight + b * Format::kBytes;
            const char* ahead = reinterpret_cast<const char*>(block) + kPrefetchBytes;
            for (int64_t line = 0; line < Format::kBytes; line += 64) _mm_prefetch(ahead + line, _MM_HINT_T0);
            const Format weight(block);
            for (int r = 0; r < kTileRows; ++r) {
                const uint8_t* act = tile.act + r * tile.act_stride + b * kActBytes;
                float scale;
                __builtin_memcpy(&scale, act + kActScale, 4);
                acc[r] = _mm512_fmadd_ps(weight.dot(act), _mm512_set1_ps(scale), acc[r]);
            }
        }
        for (int r = 0; r < kTileRows; ++r) out[r] = acc[r];
    }
};

}  // namespace

void add_matmul_q8_256(Kernels& table) {
    auto set = [&](Type type, MatmulFn function) {
        table.act_form[static_cast<uint32_t>(type)] = ActForm::Q8_256;
        table.matmul[static_cast<uint32_t>(type)] = function;
    };
    set(Type::Q2_K, run_matmul<Kernel<Q2K>>);
    set(Type::Q3_K, run_matmul<Kernel<Q3K>>);
    set(Type::Q4_K, run_matmul<Kernel<Q4K>>);
    set(Type::Q5_K, run_matmul<Kernel<Q5K>>);
    set(Type::Q6_K, run_matmul<Kernel<Q6K>>);
    set(Type::IQ4_XS, run_matmul<Kernel<Iq4Xs>>);
}

}  // namespace quantd::avx512vnni
