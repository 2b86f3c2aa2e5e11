// Matmul of the types with super-blocks of 256 weights with Q8_256 activations, 256 bits wide.
//
// The eight groups of 32 weights of a super-block are unpacked one after the other, each once for up to four
// activation rows.  vpmaddubsw takes 32 products of unsigned quants and signed activations to 16 sums of two,
// which fit 16 bits; vpmaddwd multiplies them by the group's scale and adds pairs.  One float multiply-add
// per super-block and row follows.
#include <immintrin.h>

#include "blocks.h"
#include "kernels/levels.h"
#include "kernels/tile.h"

namespace quantd::avx2 {
namespace {

constexpr int64_t kPrefetchBytes = 2048;

// Fields of BlockQ8_256.
constexpr int64_t kActBytes = 320, kActSums = 256, kActScale = 288;

__m256i load256(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
__m128i load128(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

__m256 broadcast_f16(const uint8_t* p) {
    uint16_t half;
    __builtin_memcpy(&half, p, 2);
    return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(half)));
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

// Sums of two products of unsigned quants and signed activations, (16) int16.
struct UnsignedQuants {
    static __m256i products(__m256i q, __m256i act) { return _mm256_maddubs_epi16(q, act); }
};

// Scales, minima and floats of Q4_K and Q5_K.
struct ScaleMin : UnsignedQuants {
    __m256i bytes;  // scales and minima, in both halves
    __m256 d, dmin;

    explicit ScaleMin(const uint8_t* block)
        : bytes(_mm256_broadcastsi128_si256(unpack_scales(load128(block)))),
          d(broadcast_f16(block)),
          dmin(broadcast_f16(block + 2)) {}

    // Scale of one group in 16 words.
    __m256i scale(int group) const {
        return _mm256_shuffle_epi8(bytes, _mm256_set1_epi16(static_cast<short>(0xff00 | group)));
    }
    __m256i start(__m256i) const { return _mm256_setzero_si256(); }
    __m256 value(__m256i sum, __m256i sums) const {
        const __m256i twice =
            _mm256_setr_epi8(8, -1, 8, -1, 9, -1, 9, -1, 10, -1, 10, -1, 11, -1, 11, -1,  //
                             12, -1, 12, -1, 13, -1, 13, -1, 14, -1, 14, -1, 15, -1, 15, -1);
        const __m256i min_sum = _mm256_madd_epi16(_mm256_shuffle_epi8(bytes, twice), sums);
        return _mm256_fnmadd_ps(_mm256_cvtepi32_ps(min_sum), dmin, _mm256_mul_ps(_mm256_cvtepi32_ps(sum), d));
    }
};

struct Q4K : ScaleMin {
    static constexpr int64_t kBytes = sizeof(BlockQ4_K);
    const uint8_t* qs;

    explicit Q4K(const uint8_t* block) : ScaleMin(block), qs(block + 16) {}
    __m256i quants(int group) const {
        const __m256i packed = load256(qs + group / 2 * 32);
        return _mm256_and_si256(group % 2 ? _mm256_srli_epi16(packed, 4) : packed, _mm256_set1_epi8(0x0f));
    }
};

struct Q5K : ScaleMin {
    static constexpr int64_t kBytes = sizeof(BlockQ5_K);
    const uint8_t* qs;
    __m256i high;

    explicit Q5K(const uint8_t* block) : ScaleMin(block), qs(block + 48), high(load256(block + 16)) {}
    __m256i quants(int group) const {
        const __m256i packed = load256(qs + group / 2 * 32);
        const __m256i low =
            _mm256_and_si256(group % 2 ? _mm256_srli_epi16(packed, 4) : packed, _mm256_set1_epi8(0x0f));
        const __m256i bit = _mm256_set1_epi8(static_cast<char>(1u << group));
        const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(high, bit), bit);
        return _mm256_or_si256(low, _mm256_and_si256(set, _mm256_set1_epi8(16)));
    }
};

// Signed scales of 16 elements each and what the types that have them share: d * sum((scale * q + offset) *
// a), where the offsets make up for quants that were stored unsigned.
struct ByteScales : UnsignedQuants {
    __m256i bytes;   // the sixteen scales, in both halves
    __m256i offset;  // (16) int16: minus scale times a power of two
    __m256 d;

    ByteScales(__m128i scales, int shift, const uint8_t* d_half)
        : bytes(_mm256_broadcastsi128_si256(scales)),
          offset(_mm256_sub_epi16(_mm256_setzero_si256(),
                                  _mm256_slli_epi16(_mm256_cvtepi8_epi16(scales), shift))),
          d(broadcast_f16(d_half)) {}

    // Two scales of one group, eight words each, with their signs.
    __m256i scale(int group) const {
        const __m128i low = _mm_set1_epi16(static_cast<short>((2 * group) << 8 | 0xff));
        const __m128i high = _mm_set1_epi16(static_cast<short>((2 * group + 1) << 8 | 0xff));
        return _mm256_srai_epi16(_mm256_shuffle_epi8(bytes, _mm256_setr_m128i(low, high)), 8);
    }
    __m256i start(__m256i sums) const { return _mm256_madd_epi16(offset, sums); }
    __m256 value(__m256i sum, __m256i) const { return _mm256_mul_ps(_mm256_cvtepi32_ps(sum), d); }
};

// Bits 2 * quarter and 2 * quarter + 1 of every byte, moved to bits 4 and 5.
__m256i two_bits_high(__m256i packed, int quarter) {
    const __m256i moved = quarter == 0   ? _mm256_slli_epi16(packed, 4)
                          : quarter == 1 ? _mm256_slli_epi16(packed, 2)
                          : quarter == 2 ? packed
                                         : _mm256_srli_epi16(packed, 2);
    return _mm256_and_si256(moved, _mm256_set1_epi8(0x30));
}

// The two-bit quants of one group of Q2_K and Q3_K.
__m256i two_bits(const uint8_t* qs, int group) {
    const __m256i packed = load256(qs + group / 4 * 32);
    return _mm256_and_si256(_mm256_srli_epi16(packed, group % 4 * 2), _mm256_set1_epi8(3));
}

struct Q6K : ByteScales {
    static constexpr int64_t kBytes = sizeof(BlockQ6_K);
    const uint8_t* block;

    explicit Q6K(const uint8_t* block_) : ByteScales(load128(block_ + 192), 5, block_ + 208), block(block_) {}
    __m256i quants(int group) const {
        const int half = group / 4, quarter = group % 4;
        const __m256i packed = load256(block + 64 * half + 32 * (quarter % 2));
        const __m256i low =
            _mm256_and_si256(quarter / 2 ? _mm256_srli_epi16(packed, 4) : packed, _mm256_set1_epi8(0x0f));
        return _mm256_or_si256(low, two_bits_high(load256(block + 128 + 32 * half), quarter));
    }
};

struct Q2K : ByteScales {
    static constexpr int64_t kBytes = sizeof(BlockQ2_K);
    const uint8_t* qs;
    __m256i mins;  // (16) int16
    __m256 dmin;

    explicit Q2K(const uint8_t* block)
        : ByteScales(_mm_and_si128(load128(block), _mm_set1_epi8(0x0f)), 0, block + 80),
          qs(block + 16),
          mins(_mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(load128(block), 4), _mm_set1_epi8(0x0f)))),
          dmin(broadcast_f16(block + 82)) {}
    __m256i quants(int group) const { return two_bits(qs, group); }
    __m256i start(__m256i) const { return _mm256_setzero_si256(); }
    __m256 value(__m256i sum, __m256i sums) const {
        const __m256i min_sum = _mm256_madd_epi16(mins, sums);
        return _mm256_fnmadd_ps(_mm256_cvtepi32_ps(min_sum), dmin, _mm256_mul_ps(_mm256_cvtepi32_ps(sum), d));
    }
};

struct Q3K : ByteScales {
    static constexpr int64_t kBytes = sizeof(BlockQ3_K);
    const uint8_t* qs;
    __m256i high;

    explicit Q3K(const uint8_t* block)
        : ByteScales(scales(block + 96), 2, block + 108), qs(block + 32), high(load256(block)) {}
    static __m128i scales(const uint8_t* p) {
        int64_t low_bytes;
        int32_t high_bytes;
        __builtin_memcpy(&low_bytes, p, 8);
        __builtin_memcpy(&high_bytes, p + 8, 4);
        const __m128i low = _mm_and_si128(_mm_set_epi64x(low_bytes >> 4, low_bytes), _mm_set1_epi8(0x0f));
        const __m128i shifted = _mm_srlv_epi32(_mm_set1_epi32(high_bytes), _mm_setr_epi32(0, 2, 4, 6));
        const __m128i top = _mm_slli_epi16(_mm_and_si128(shifted, _mm_set1_epi8(3)), 4);
        return _mm_sub_epi8(_mm_or_si128(low, top), _mm_set1_epi8(32));
    }
    __m256i quants(int group) const {
        const __m256i bit = _mm256_set1_epi8(static_cast<char>(1u << group));
        const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(high, bit), bit);
        return _mm256_or_si256(two_bits(qs, group), _mm256_and_si256(set, _mm256_set1_epi8(4)));
    }
};

struct Iq4Xs {
    static constexpr int64_t kBytes = sizeof(BlockIQ4_XS);
    const uint8_t* qs;
    __m256i words;  // the eight scales, int16, in both halves
    __m256 d;

    explicit Iq4Xs(const uint8_t* block) : qs(block + 8), d(broadcast_f16(block)) {
        uint16_t high_bits;
        int32_t low_bits;
        __builtin_memcpy(&high_bits, block + 2, 2);
        __builtin_memcpy(&low_bits, block + 4, 4);
        const __m256i low =
            _mm256_srlv_epi32(_mm256_set1_epi32(low_bits), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
        const __m256i high =
            _mm256_srlv_epi32(_mm256_set1_epi32(high_bits), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
        const __m256i top = _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4);
        const __m256i both = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(0x0f)), top);
        const __m256i scales = _mm256_sub_epi32(both, _mm256_set1_epi32(32));
        words = _mm256_permute4x64_epi64(_mm256_packs_epi32(scales, scales), 0x88);
    }
    __m256i scale(int group) const {
        return _mm256_shuffle_epi8(words,
                                   _mm256_set1_epi16(static_cast<short>((2 * group + 1) << 8 | 2 * group)));
    }
    // Signed, unlike the quants of the other types: see products.
    __m256i quants(int group) const {
        const __m128i packed = load128(qs + 16 * group);
        const __m256i nibbles = _mm256_setr_m128i(packed, _mm_srli_epi16(packed, 4));
        const __m256i book =
            _mm256_broadcastsi128_si256(load128(reinterpret_cast<const uint8_t*>(kIq4Values)));
        return _mm256_shuffle_epi8(book, _mm256_and_si256(nibbles, _mm256_set1_epi8(0x0f)));
    }
    static __m256i products(__m256i q, __m256i act) {
        return _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(act, q));
    }
    __m256i start(__m256i) const { return _mm256_setzero_si256(); }
    __m256 value(__m256i sum, __m256i) const { return _mm256_mul_ps(_mm256_cvtepi32_ps(sum), d); }
};

template <class Format>
struct Kernel {
    using Acc = __m256;
    static constexpr int kRows = 4, kOuts = 1;
    static constexpr int64_t kChunkUnits = 4;  // super-blocks

    static int64_t units(int64_t n_in) { return n_in / kQ256; }
    static Acc zero() { return _mm256_setzero_ps(); }
    static float total(const Acc& acc) {
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(acc), _mm256_extractf128_ps(acc, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }

    template <int kTileOuts, int kTileRows>
    static void dot(const Dot& tile, Acc* out) {
        static_assert(kTileOuts == 1);
        __m256 acc[kTileRows];
        for (int r = 0; r < kTileRows; ++r) acc[r] = out[r];
        for (int64_t b = tile.begin; b < tile.end; ++b) {
            const uint8_t* block = tile.weight + b * Format::kBytes;
            const char* ahead = reinterpret_cast<const char*>(block) + kPrefetchBytes;
            for (int64_t line = 0; line < Format::kBytes; line += 64) _mm_prefetch(ahead + line, _MM_HINT_T0);
            add_block<kTileRows>(Format(block), tile.act + b * kActBytes, tile.act_stride, acc);
        }
        for (int r = 0; r < kTileRows; ++r) out[r] = acc[r];
    }

    template <int kTileRows>
    static void add_block(const Format& weight, const uint8_t* act, int64_t act_stride, __m256* acc) {
        __m256i sum[kTileRows];
        for (int r = 0; r < kTileRows; ++r) sum[r] = weight.start(load256(act + r * act_stride + kActSums));
#pragma GCC unroll 8
        for (int group = 0; group < 8; ++group) {
            const __m256i q = weight.quants(group), scale = weight.scale(group);
            for (int r = 0; r < kTileRows; ++r) {
                const __m256i a = load256(act + r * act_stride + 32 * kGroupOrder[group]);
                sum[r] = _mm256_add_epi32(sum[r], _mm256_madd_epi16(Format::products(q, a), scale));
            }
        }
        for (int r = 0; r < kTileRows; ++r) {
            const uint8_t* row = act + r * act_stride;
            float scale;
            __builtin_memcpy(&scale, row + kActScale, 4);
            acc[r] =
                _mm256_fmadd_ps(weight.value(sum[r], load256(row + kActSums)), _mm256_set1_ps(scale), acc[r]);
        }
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

}  // namespace quantd::avx2
