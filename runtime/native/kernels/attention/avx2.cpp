// Attention of one query row over KV pages, and the cached forms, 256 bits wide.
//
// Two query heads share every loaded key and value.  Per page: scores of four positions at a time, a softmax
// with a running maximum, then the weighted sum of the values, 32 dimensions of it in registers at a time.
// What one head gets depends on its query and the positions only.  A head_dim that is no multiple of 8 goes
// to the scalar level.
#include <immintrin.h>
#include <math.h>

#include "blocks.h"
#include "kernels/levels.h"
#include "kernels/vector_exp.h"

namespace quantd::avx2 {
namespace {

constexpr int kMaxHeads = 2;

__m256 broadcast_f16(const uint8_t* p) {
    uint16_t half;
    __builtin_memcpy(&half, p, 2);
    return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(half)));
}

// Eight elements of one cached row from element 8 * chunk on.
struct F16Row {
    static __m256 load(const uint8_t* row, int64_t chunk) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + chunk * 16)));
    }
};
struct Q8Row {
    static __m256 load(const uint8_t* row, int64_t chunk) {
        const uint8_t* block = row + chunk / 4 * int64_t(sizeof(BlockQ8_0));
        const __m128i qs = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(block + 2 + chunk % 4 * 8));
        return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(qs)), broadcast_f16(block));
    }
};

// The sums of four vectors.
__m128 totals(__m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256 four = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1));
}

float total_of(__m256 x) { return _mm_cvtss_f32(totals(x, x, x, x)); }

float largest_of(__m256 x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
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
    __m256 acc[kHeads][kTokens];
    for (auto& head : acc) {
        for (auto& lane : head) lane = _mm256_setzero_ps();
    }
    const uint8_t* rows = page.rows + t * page.row_bytes;
    for (int64_t chunk = 0; chunk < page.head_dim / 8; ++chunk) {
        __m256 key[kTokens];
        for (int i = 0; i < kTokens; ++i) key[i] = Row::load(rows + i * page.row_bytes, chunk);
        for (int h = 0; h < kHeads; ++h) {
            const __m256 query = _mm256_loadu_ps(q + h * page.head_dim + chunk * 8);
            for (int i = 0; i < kTokens; ++i) acc[h][i] = _mm256_fmadd_ps(query, key[i], acc[h][i]);
        }
    }
    for (int h = 0; h < kHeads; ++h) {
        if constexpr (kTokens == 4) {
            const __m128 dots = totals(acc[h][0], acc[h][1], acc[h][2], acc[h][3]);
            _mm_storeu_ps(scores + h * page.stride + t, _mm_mul_ps(dots, _mm_set1_ps(scale)));
        } else {
            scores[h * page.stride + t] = total_of(acc[h][0]) * scale;
        }
    }
}

// Turns the scores (count) of a page into weights against the running maximum; updates the maximum and the
// running sum of weights; returns the factor by which what was summed up before must shrink.  The scores' row
// is padded to whole vectors: the lanes behind count are set to minus infinity, whose weight is zero.
float softmax_page(float* scores, int64_t count, float* max, float* total) {
    for (int64_t i = count; i % 8 != 0; ++i) scores[i] = -INFINITY;
    __m256 largest = _mm256_set1_ps(*max);
    for (int64_t i = 0; i < count; i += 8) {  // a NaN score leaves the maximum and shows in the sum
        largest = _mm256_max_ps(_mm256_loadu_ps(scores + i), largest);
    }
    const float new_max = largest_of(largest);
    const float shrink = *max == new_max ? 1.0f : expf(*max - new_max);
    __m256 sum = _mm256_setzero_ps();
    for (int64_t i = 0; i < count; i += 8) {
        const __m256 weight = vector_exp(_mm256_sub_ps(_mm256_loadu_ps(scores + i), _mm256_set1_ps(new_max)));
        _mm256_storeu_ps(scores + i, weight);
        sum = _mm256_add_ps(sum, weight);
    }
    *total = *total * shrink + total_of(sum);
    *max = new_max;
    return shrink;
}

// out (kHeads, 8 * kChunks) = out * shrink + weights . values, for the chunks from `chunk` on.  The first
// page starts from zero.
template <class Row, int kHeads, int kChunks>
void value_tile(const Page& page, const float* weights, const float* shrink, bool first, int64_t chunk,
                float* out) {
    __m256 acc[kHeads][kChunks];
    for (int h = 0; h < kHeads; ++h) {
        for (int c = 0; c < kChunks; ++c) {
            const __m256 old = _mm256_loadu_ps(out + h * page.head_dim + (chunk + c) * 8);
            acc[h][c] = first ? _mm256_setzero_ps() : _mm256_mul_ps(old, _mm256_set1_ps(shrink[h]));
        }
    }
    for (int64_t t = 0; t < page.count; ++t) {
        __m256 value[kChunks];
        for (int c = 0; c < kChunks; ++c) value[c] = Row::load(page.rows + t * page.row_bytes, chunk + c);
        for (int h = 0; h < kHeads; ++h) {
            const __m256 weight = _mm256_set1_ps(weights[h * page.stride + t]);
            for (int c = 0; c < kChunks; ++c) acc[h][c] = _mm256_fmadd_ps(weight, value[c], acc[h][c]);
        }
    }
    for (int h = 0; h < kHeads; ++h) {
        for (int c = 0; c < kChunks; ++c)
            _mm256_storeu_ps(out + h * page.head_dim + (chunk + c) * 8, acc[h][c]);
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
    const int64_t chunks = args.head_dim / 8;
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
        for (; c + 4 <= chunks; c += 4)
            value_tile<Row, kHeads, 4>(page, args.scratch, shrink, start == 0, c, out);
        for (; c < chunks; ++c) value_tile<Row, kHeads, 1>(page, args.scratch, shrink, start == 0, c, out);
    }
    for (int h = 0; h < kHeads; ++h) {
        for (int64_t i = 0; i < args.head_dim; ++i) out[h * args.head_dim + i] /= total[h];
    }
}

template <class Row>
void attend_group(const AttentionArgs& args) {
    int64_t head = 0;
    for (; head + kMaxHeads <= args.group; head += kMaxHeads) attend<Row, kMaxHeads>(args, head);
    for (; head < args.group; ++head) attend<Row, 1>(args, head);
}

void attention(const AttentionArgs& args) {
    if (args.head_dim % 8 != 0) return scalar::attention(args);
    args.kv_type == KvType::F16 ? attend_group<F16Row>(args) : attend_group<Q8Row>(args);
}

void store_f16(const float* x, uint8_t* out, int64_t n) {
    constexpr int kRound = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), kRound);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i * 2), halves);
    }
    for (; i < n; ++i) {
        const uint16_t half =
            static_cast<uint16_t>(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x[i]), kRound)));
        __builtin_memcpy(out + i * 2, &half, 2);
    }
}

// Eight quants of 32 bits each, of four vectors, to 32 bytes in order.
__m256i narrow(__m256i a, __m256i b, __m256i c, __m256i d) {
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// The same operations as the scalar level, hence the same bytes.
void store_q8_0(const float* x, uint8_t* out, int64_t n) {
    const __m256i sign_off = _mm256_set1_epi32(0x7fffffff);
    for (int64_t b = 0; b < n / kQ32; ++b, x += kQ32, out += sizeof(BlockQ8_0)) {
        __m256i bits = _mm256_setzero_si256();
        for (int v = 0; v < 4; ++v) {
            const __m256i magnitude =
                _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + 8 * v)), sign_off);
            bits = _mm256_max_epu32(bits, magnitude);
        }
        alignas(32) uint32_t lanes[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), bits);
        uint32_t max_bits = 0;
        for (const uint32_t lane : lanes) max_bits = lane > max_bits ? lane : max_bits;
        float max;
        __builtin_memcpy(&max, &max_bits, 4);
        const bool finite = max_bits < 0x7f800000u;
        const uint16_t d =
            finite ? static_cast<uint16_t>(_mm_cvtsi128_si32(_mm_cvtps_ph(
                         _mm_set_ss(max / 127.0f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)))
                   : uint16_t{0x7e00};
        __builtin_memcpy(out, &d, 2);
        if (!finite || !(max > 1e-9f)) {
            __builtin_memset(out + 2, 0, 32);
            continue;
        }
        const __m256 factor = _mm256_set1_ps(127.0f / max);
        auto quants = [&](int v) {
            return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * v), factor));
        };
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2),
                            narrow(quants(0), quants(1), quants(2), quants(3)));
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

}  // namespace quantd::avx2
