// Attention of one query row over KV pages, and the cached forms, 512 bits wide.
//
// Up to four query heads share every loaded key and value.  Per page: scores of four positions at a time, a
// softmax with a running maximum, then the weighted sum of the values, 64 dimensions of it in registers at a
// time.  What one head gets depends on its query and the positions only.
#include <immintrin.h>
#include <math.h>

#include "blocks.h"
#include "kernels/levels.h"
#include "kernels/vector_exp.h"

namespace quantd::avx512vnni {
namespace {

constexpr int kMaxHeads = 4;

__m512 broadcast_f16(const uint8_t* p) {
    uint16_t half;
    __builtin_memcpy(&half, p, 2);
    return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(half)));
}

// Sixteen elements of one cached row from element 16 * chunk on; or those that `mask` names.
struct F16Row {
    static __m512 load(const uint8_t* row, int64_t chunk) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + chunk * 32)));
    }
    static __m512 load(const uint8_t* row, int64_t chunk, __mmask16 mask) {
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, row + chunk * 32));
    }
};
struct Q8Row {
    static __m512 load(const uint8_t* row, int64_t chunk) {
        const uint8_t* block = row + chunk / 2 * int64_t(sizeof(BlockQ8_0));
        const __m128i qs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 2 + chunk % 2 * 16));
        return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(qs)), broadcast_f16(block));
    }
    // Never needed: rows are whole blocks of 32.
    static __m512 load(const uint8_t* row, int64_t chunk, __mmask16) { return load(row, chunk); }
};

// The sums of four vectors.
__m128 totals(__m512 a, __m512 b, __m512 c, __m512 d) {
    auto fold = [](__m512 x) {
        return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    };
    const __m256 four = _mm256_hadd_ps(_mm256_hadd_ps(fold(a), fold(b)), _mm256_hadd_ps(fold(c), fold(d)));
    return _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1));
}

// One page, seen by some heads of the group.
struct Page {
    const uint8_t* rows;  // (count, head_dim) keys or values
    int64_t row_bytes;
    int64_t count;  // positions in use
    int64_t head_dim;
    int64_t stride;  // from one head's scores to the next one's
};

// scores (kHeads, kTokens) of positions [t, t + kTokens).
template <class Row, int kHeads, int kTokens>
void score_tile(const Page& page, const float* q, float scale, int64_t t, float* scores) {
    __m512 acc[kHeads][kTokens];
    for (auto& head : acc) {
        for (auto& lane : head) lane = _mm512_setzero_ps();
    }
    const uint8_t* rows = page.rows + t * page.row_bytes;
    const int64_t whole = page.head_dim / 16;
    for (int64_t chunk = 0; chunk < whole; ++chunk) {
        __m512 key[kTokens];
        for (int i = 0; i < kTokens; ++i) key[i] = Row::load(rows + i * page.row_bytes, chunk);
        for (int h = 0; h < kHeads; ++h) {
            const __m512 query = _mm512_loadu_ps(q + h * page.head_dim + chunk * 16);
            for (int i = 0; i < kTokens; ++i) acc[h][i] = _mm512_fmadd_ps(query, key[i], acc[h][i]);
        }
    }
    if (page.head_dim % 16 != 0) {
        const __mmask16 mask = static_cast<__mmask16>((1u << (page.head_dim % 16)) - 1);
        for (int h = 0; h < kHeads; ++h) {
            const __m512 query = _mm512_maskz_loadu_ps(mask, q + h * page.head_dim + whole * 16);
            for (int i = 0; i < kTokens; ++i) {
                const __m512 key = Row::load(rows + i * page.row_bytes, whole, mask);
                acc[h][i] = _mm512_fmadd_ps(query, key, acc[h][i]);
            }
        }
    }
    for (int h = 0; h < kHeads; ++h) {
        if constexpr (kTokens == 4) {
            const __m128 dots = totals(acc[h][0], acc[h][1], acc[h][2], acc[h][3]);
            _mm_storeu_ps(scores + h * page.stride + t, _mm_mul_ps(dots, _mm_set1_ps(scale)));
        } else {
            scores[h * page.stride + t] = _mm512_reduce_add_ps(acc[h][0]) * scale;
        }
    }
}

// Turns the scores (count) of a page into weights against the running maximum; updates the maximum and the
// running sum of weights; returns the factor by which what was summed up before must shrink.
float softmax_page(float* scores, int64_t count, float* max, float* total) {
    auto lanes = [=](int64_t i) {
        return count - i >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << (count - i)) - 1);
    };
    __m512 largest = _mm512_set1_ps(*max);
    for (int64_t i = 0; i < count; i += 16) {  // a NaN score leaves the maximum and shows in the sum
        const __m512 score = _mm512_maskz_loadu_ps(lanes(i), scores + i);
        largest = _mm512_mask_max_ps(largest, lanes(i), score, largest);
    }
    const float new_max = _mm512_reduce_max_ps(largest);
    const float shrink = *max == new_max ? 1.0f : expf(*max - new_max);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += 16) {
        const __m512 score = _mm512_maskz_loadu_ps(lanes(i), scores + i);
        const __m512 weight = vector_exp(_mm512_sub_ps(score, _mm512_set1_ps(new_max)));
        _mm512_mask_storeu_ps(scores + i, lanes(i), weight);
        sum = _mm512_mask_add_ps(sum, lanes(i), sum, weight);
    }
    *total = *total * shrink + _mm512_reduce_add_ps(sum);
    *max = new_max;
    return shrink;
}

// out (kHeads, 16 * kChunks) = out * shrink + weights . values, for the chunks from `chunk` on; all of a
// chunk's lanes or, with one chunk, those of `mask`.  The first page starts from zero.
template <class Row, int kHeads, int kChunks, bool kMasked>
void value_tile(const Page& page, const float* weights, const float* shrink, bool first, int64_t chunk,
                __mmask16 mask, float* out) {
    auto load = [&](const uint8_t* row, int64_t c) {
        if constexpr (kMasked) return Row::load(row, c, mask);
        return Row::load(row, c);
    };
    __m512 acc[kHeads][kChunks];
    for (int h = 0; h < kHeads; ++h) {
        for (int c = 0; c < kChunks; ++c) {
            const __m512 old = _mm512_maskz_loadu_ps(mask, out + h * page.head_dim + (chunk + c) * 16);
            acc[h][c] = first ? _mm512_setzero_ps() : _mm512_mul_ps(old, _mm512_set1_ps(shrink[h]));
        }
    }
    for (int64_t t = 0; t < page.count; ++t) {
        __m512 value[kChunks];
        for (int c = 0; c < kChunks; ++c) value[c] = load(page.rows + t * page.row_bytes, chunk + c);
        for (int h = 0; h < kHeads; ++h) {
            const __m512 weight = _mm512_set1_ps(weights[h * page.stride + t]);
            for (int c = 0; c < kChunks; ++c) acc[h][c] = _mm512_fmadd_ps(weight, value[c], acc[h][c]);
        }
    }
    for (int h = 0; h < kHeads; ++h) {
        for (int c = 0; c < kChunks; ++c) {
            _mm512_mask_storeu_ps(out + h * page.head_dim + (chunk + c) * 16, mask, acc[h][c]);
        }
    }
}

// All pages for kHeads query heads.
template <class Row, int kHeads>
void attend(const AttentionArgs& args, int64_t head) {
    const float* q = args.q + head * args.head_dim;
    float* out = args.out + head * args.head_dim;
    Page page{nullptr, kv_row_bytes(args.kv_type, args.head_dim), 0, args.head_dim,
              (args.page_tokens + 15) / 16 * 16};
    float max[kHeads], total[kHeads], shrink[kHeads];
    for (int h = 0; h < kHeads; ++h) max[h] = -INFINITY, total[h] = 0;
    const int64_t whole = args.head_dim / 16;
    const __mmask16 all = 0xffff, rest = static_cast<__mmask16>((1u << (args.head_dim % 16)) - 1);
    for (int64_t start = 0, index = 0; start < args.n_positions; start += args.page_tokens, ++index) {
        const int64_t left = args.n_positions - start;
        page.count = left < args.page_tokens ? left : args.page_tokens;
        page.rows = args.k_pages[index];
        int64_t t = 0;
        for (; t + 4 <= page.count; t += 4) score_tile<Row, kHeads, 4>(page, q, args.scale, t, args.scratch);
        for (; t < page.count; ++t) score_tile<Row, kHeads, 1>(page, q, args.scale, t, args.scratch);
        for (int h = 0; h < kHeads; ++h) {
            shrink[h] = softmax_page(args.scratch + h * page.stride, page.count, &max[h], &total[h]);
        }
        page.rows = args.v_pages[index];
        int64_t c = 0;
        for (; c + 4 <= whole; c += 4) {
            value_tile<Row, kHeads, 4, false>(page, args.scratch, shrink, start == 0, c, all, out);
        }
        for (; c < whole; ++c)
            value_tile<Row, kHeads, 1, false>(page, args.scratch, shrink, start == 0, c, all, out);
        if (rest != 0) value_tile<Row, kHeads, 1, true>(page, args.scratch, shrink, start == 0, c, rest, out);
    }
    for (int h = 0; h < kHeads; ++h) {
        for (int64_t i = 0; i < args.head_dim; ++i) out[h * args.head_dim + i] /= total[h];
    }
}

template <class Row>
void attend_group(const AttentionArgs& args) {
    for (int64_t head = 0; head < args.group; head += kMaxHeads) {
        switch (args.group - head) {
            case 1:
                attend<Row, 1>(args, head);
                break;
            case 2:
                attend<Row, 2>(args, head);
                break;
            case 3:
                attend<Row, 3>(args, head);
                break;
            default:
                attend<Row, kMaxHeads>(args, head);
                break;
        }
    }
}

void attention(const AttentionArgs& args) {
    args.kv_type == KvType::F16 ? attend_group<F16Row>(args) : attend_group<Q8Row>(args);
}

void store_f16(const float* x, uint8_t* out, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 mask = n - i >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << (n - i)) - 1);
        const __m512 value = _mm512_maskz_loadu_ps(mask, x + i);
        _mm256_mask_storeu_epi16(out + i * 2, mask,
                                 _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
}

// The same operations as the scalar level, hence the same bytes.
void store_q8_0(const float* x, uint8_t* out, int64_t n) {
    const __m512i sign_off = _mm512_set1_epi32(0x7fffffff);
    for (int64_t b = 0; b < n / kQ32; ++b, x += kQ32, out += sizeof(BlockQ8_0)) {
        const __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
        const __m512i bits = _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(low), sign_off),
                                              _mm512_and_si512(_mm512_castps_si512(high), sign_off));
        const uint32_t max_bits = _mm512_reduce_max_epu32(bits);
        float max;
        __builtin_memcpy(&max, &max_bits, 4);
        const bool finite = max_bits < 0x7f800000u;
        const uint16_t d =
            finite ? static_cast<uint16_t>(_mm_cvtsi128_si32(_mm_cvtps_ph(
                         _mm_set_ss(max / 127.0f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)))
                   : uint16_t{0x7e00};
        const bool used = finite && max > 1e-9f;
        const __m512 factor = _mm512_set1_ps(used ? 127.0f / max : 0.0f);
        const __mmask16 mask = used ? 0xffff : 0;
        const __m512i low_q = _mm512_maskz_cvtps_epi32(mask, _mm512_mul_ps(low, factor));
        const __m512i high_q = _mm512_maskz_cvtps_epi32(mask, _mm512_mul_ps(high, factor));
        __builtin_memcpy(out, &d, 2);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2), _mm512_cvtepi32_epi8(low_q));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 18), _mm512_cvtepi32_epi8(high_q));
    }
}

void store_kv(const float* x, uint8_t* out, int64_t head_dim, KvType type) {
    type == KvType::F16 ? store_f16(x, out, head_dim) : store_q8_0(x, out, head_dim);
}

}  // namespace

void add_attention(Kernels& table) {
    table.store_kv = store_kv;
    table.attention = attention;
}

}  // namespace quantd::avx512vnni
