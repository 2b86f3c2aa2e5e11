// Attention of query rows over KV pages, and the cached forms, 256 bits wide.  avx2.cpp and avxvnni.cpp
// include this with QUANTD_LEVEL set to their namespace; the bits are the same.
//
// Up to kMaxRows query heads, of one row or of several, share every loaded key and value.  A range of
// positions at a time: all its scores, with positions in lanes, one dimension after the other; a softmax; the
// weighted sum of the values, 16 dimensions in registers over the whole range.  Every sum of one head runs in
// one order, by dimension or by position, whatever the other heads are.
//
// q8_0 keys meet queries rounded to 15 bits: products of bytes and words are exact in int32 and take half the
// multiply-adds of floats; the rounding is 1/250 of that of the keys.  The scales of q8_0 values are folded
// into the weights.
//
// Bound by multiply-adds: 16 a cycle and core in floats.  Measured on Zen 3 (50.7 G multiply-adds/s a core in
// a loop of nothing else), cache resident: f16 71 % of that in prompts (heads of 64; 79 %, heads of 128), 65
// % in decoding with four heads for each KV head, where one core reads 16 GB/s of cache; q8_0 65 % and 55 %.
// With one head for each KV head the bytes of f16 keys and values bound it: 35 GB/s a core.
//
// What this level does not take goes to the scalar one: a head_dim that is no multiple of 8, and pages that
// neither divide a range into whole groups of positions nor hold whole ranges.
#include <immintrin.h>
#include <math.h>

#include "blocks.h"
#include "kernels/attention/kv_layout.h"
#include "kernels/levels.h"
#include "kernels/vector_exp.h"
#include "kernels/word_products.h"

namespace quantd::QUANTD_LEVEL {
namespace {

constexpr int kMaxRows = 6;  // query heads that share loads: 12 of 16 registers hold their sums
constexpr int64_t kGroups = kAttentionRange / kKeyGroup;

__m256 load_halves(const uint8_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

float total_of(__m256 x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

float largest_of(__m256 x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

float exp_of(float x) { return _mm256_cvtss_f32(vector_exp(_mm256_set1_ps(x))); }

// Query heads that are worked on together.
struct Tile {
    const float* q[kMaxRows];     // (head_dim) F16 keys
    const int16_t* qs[kMaxRows];  // (head_dim) q8_0 keys: the query is factor * qs
    float factor[kMaxRows];       // takes a dot product to a score
    int64_t count[kMaxRows];      // positions of the range that the head sees, >= 1
    int64_t first[kMaxRows];      // the first of them that the head sees; 0 without a window
    float* out[kMaxRows];         // the heads' states
    float* max[kMaxRows];
    float* total[kMaxRows];
};

// One range of positions.
struct Range {
    const uint8_t* keys[kGroups];          // each group of kKeyGroup positions
    const uint8_t* values[kGroups];        // (kKeyGroup, head_dim) of the group
    const uint8_t* value_scales[kGroups];  // q8_0: (head_dim / 32, scale_stride) f16, from the group's first
    int64_t scale_stride;                  // bytes from one block of 32 to the next
    int64_t head_dim;
    float softcap;
};

// Scratch of one tile: (kMaxRows, kAttentionRange) scores, then weights; (kMaxRows, kAttentionRange) weights
// times the scales of a block of values; (kMaxRows, head_dim) sums of the range.
struct Work {
    float* scores;
    float* scaled;
    float* sums;
};

// ---- scores
// ---------------------------------------------------------------------------------------------------

// What the scores of a group ask for while they are computed: keys of a group to come, and the group's
// values, which are wanted after the scores.  Both are as many bytes as the keys of the group.
struct Ahead {
    const uint8_t* keys;
    const uint8_t* values;
    void ask(int64_t offset) const {
        _mm_prefetch(reinterpret_cast<const char*>(keys + offset), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(values + offset), _MM_HINT_T1);
    }
};
constexpr int64_t kGroupsAhead = 4;
// The first tile of a range asks; the others find it in the cache, and ask for what they have at hand.
Ahead ahead_of(const Range& range, int64_t group, int64_t n_groups, bool first_tile) {
    if (!first_tile) return {range.keys[group], range.keys[group]};
    return {range.keys[group + kGroupsAhead < n_groups ? group + kGroupsAhead : group], range.values[group]};
}

// Scores of kRows heads at the kBlocks groups from `group` on.
template <int kRows, int kBlocks>
void score_f16(const Tile& tile, const Range& range, int64_t group, const Ahead* ahead, float* scores) {
    __m256 acc[kRows][2 * kBlocks];
    for (auto& row : acc) {
        for (auto& lane : row) lane = _mm256_setzero_ps();
    }
    for (int64_t i = 0; i < range.head_dim; ++i) {
        __m256 key[2 * kBlocks];
        for (int b = 0; b < kBlocks; ++b) {
            key[2 * b] = load_halves(range.keys[group + b] + i * 32);
            key[2 * b + 1] = load_halves(range.keys[group + b] + i * 32 + 16);
        }
        for (int r = 0; r < kRows; ++r) {
            const __m256 query = _mm256_broadcast_ss(tile.q[r] + i);
            for (int v = 0; v < 2 * kBlocks; ++v) acc[r][v] = _mm256_fmadd_ps(query, key[v], acc[r][v]);
        }
        if (i % 2 == 0) {
            for (int b = 0; b < kBlocks; ++b) ahead[b].ask(i * 32);
        }
    }
    for (int r = 0; r < kRows; ++r) {
        float* out = scores + r * kAttentionRange + group * kKeyGroup;
        for (int v = 0; v < 2 * kBlocks; ++v) {
            _mm256_storeu_ps(out + 8 * v, _mm256_mul_ps(acc[r][v], _mm256_set1_ps(tile.factor[r])));
        }
    }
}

// Holds a sum in its register: GCC would make a tree of a chain of additions, and keep all products for it.
void keep(__m256i& sum) { asm("" : "+x"(sum)); }

// sums (kRows, kKeyGroup) += what 32 dimensions from `dim` on add to the dot products of a group.  Apart from
// the loop over the dimensions: beside sums of floats GCC would keep these in memory.
template <int kRows>
[[gnu::noinline]] void add_block_q8(const Tile& tile, const uint8_t* keys, const uint8_t* scales, int64_t dim,
                                    const Ahead& ahead, float (*sums)[kKeyGroup]) {
    const int16_t* queries[kRows];
    for (int r = 0; r < kRows; ++r) queries[r] = tile.qs[r] + dim;
    keys += dim * kKeyGroup;
    __m256i dots[kRows][2];
    for (auto& row : dots) row[0] = row[1] = _mm256_setzero_si256();
#pragma GCC unroll 16
    for (int i = 0; i < kQ32; i += 2) {
        const auto* bytes = reinterpret_cast<const __m128i*>(keys + i * kKeyGroup);
        const __m256i low = _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes));
        const __m256i high = _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes + 1));
#pragma GCC unroll 6
        for (int r = 0; r < kRows; ++r) {
            int32_t two;
            __builtin_memcpy(&two, queries[r] + i, 4);
            const __m256i query = _mm256_set1_epi32(two);
            dots[r][0] = add_products(dots[r][0], low, query);
            dots[r][1] = add_products(dots[r][1], high, query);
            keep(dots[r][0]);
            keep(dots[r][1]);
        }
        if (i % 4 == 0) ahead.ask((dim + i) * kKeyGroup);
    }
    const __m256 d[2] = {load_halves(scales + dim), load_halves(scales + dim + 16)};
    for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < 2; ++v) {
            float* sum = sums[r] + 8 * v;
            _mm256_store_ps(sum, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r][v]), d[v], _mm256_load_ps(sum)));
        }
    }
}

template <int kRows>
void score_q8(const Tile& tile, const Range& range, int64_t group, const Ahead& ahead, float* scores) {
    const uint8_t* keys = range.keys[group];
    const uint8_t* scales = keys + kKeyGroup * range.head_dim;
    alignas(32) float sums[kRows][kKeyGroup] = {};
    for (int64_t dim = 0; dim < range.head_dim; dim += kQ32)
        add_block_q8<kRows>(tile, keys, scales, dim, ahead, sums);
    for (int r = 0; r < kRows; ++r) {
        float* out = scores + r * kAttentionRange + group * kKeyGroup;
        for (int v = 0; v < 2; ++v) {
            const __m256 sum = _mm256_load_ps(sums[r] + 8 * v);
            _mm256_storeu_ps(out + 8 * v, _mm256_mul_ps(sum, _mm256_set1_ps(tile.factor[r])));
        }
    }
}

// scores (count) = cap * tanh(scores / cap); the row is padded to whole vectors.
void cap_scores(float* scores, int64_t count, float cap) {
    const __m256 factor = _mm256_set1_ps(1.0f / cap);
    for (int64_t i = 0; i < count; i += 8) {
        const __m256 score = _mm256_mul_ps(_mm256_loadu_ps(scores + i), factor);
        _mm256_storeu_ps(scores + i, _mm256_mul_ps(vector_tanh(score), _mm256_set1_ps(cap)));
    }
}

// Scores (count) of one head to weights against their maximum, with their sum.  The lanes behind count up to
// a whole vector get weight zero.  A NaN score leaves the maximum and shows in the sum.
void softmax(float* scores, int64_t count, float* max, float* total) {
    for (int64_t i = count; i % 8 != 0; ++i) scores[i] = -INFINITY;
    __m256 largest = _mm256_set1_ps(-INFINITY);
    for (int64_t i = 0; i < count; i += 8) largest = _mm256_max_ps(_mm256_loadu_ps(scores + i), largest);
    *max = largest_of(largest);
    __m256 sum = _mm256_setzero_ps();
    for (int64_t i = 0; i < count; i += 8) {
        const __m256 weight = vector_exp(_mm256_sub_ps(_mm256_loadu_ps(scores + i), _mm256_set1_ps(*max)));
        _mm256_storeu_ps(scores + i, weight);
        sum = _mm256_add_ps(sum, weight);
    }
    *total = total_of(sum);
}

// ---- values
// ---------------------------------------------------------------------------------------------------

struct F16Values {
    static constexpr int kBytes = 2;
    static __m256 load(const uint8_t* p) { return load_halves(p); }
};
struct Q8Values {
    static constexpr int kBytes = 1;
    static __m256 load(const uint8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
};

// sums (kRows, 8 * kChunks) of dimensions from dim on += weights . values of positions [begin, end).
template <class Values, int kRows, int kChunks>
void sum_values(const Range& range, const float* weights, int64_t dim, int64_t begin, int64_t end,
                float* sums) {
    __m256 acc[kRows][kChunks];
    for (int r = 0; r < kRows; ++r) {
        for (int c = 0; c < kChunks; ++c) {
            acc[r][c] = _mm256_loadu_ps(sums + r * range.head_dim + dim + 8 * c);
        }
    }
    const int64_t row_bytes = range.head_dim * Values::kBytes;
    for (int64_t t = begin; t < end;) {
        const uint8_t* values =
            range.values[t / kKeyGroup] + t % kKeyGroup * row_bytes + dim * Values::kBytes;
        const int64_t group_end = (t / kKeyGroup + 1) * kKeyGroup;
        const int64_t stop = group_end < end ? group_end : end;
        for (; t < stop; ++t, values += row_bytes) {
            __m256 value[kChunks];
            for (int c = 0; c < kChunks; ++c) value[c] = Values::load(values + 8 * c * Values::kBytes);
            for (int r = 0; r < kRows; ++r) {
                const __m256 weight = _mm256_broadcast_ss(weights + r * kAttentionRange + t);
                for (int c = 0; c < kChunks; ++c) acc[r][c] = _mm256_fmadd_ps(weight, value[c], acc[r][c]);
            }
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int c = 0; c < kChunks; ++c) {
            _mm256_storeu_ps(sums + r * range.head_dim + dim + 8 * c, acc[r][c]);
        }
    }
}

// Dimensions [dim, end_dim): together as far as all heads see, then each head alone.
template <class Values, int kRows>
void sum_dimensions(const Tile& tile, const Range& range, const float* weights, int64_t dim, int64_t end_dim,
                    float* sums) {
    constexpr int kChunks = kRows > 2 ? 2 : 4;
    int64_t common = tile.count[0];
    for (int r = 1; r < kRows; ++r) common = tile.count[r] < common ? tile.count[r] : common;
    int64_t at = dim;
    for (; at + 8 * kChunks <= end_dim; at += 8 * kChunks) {
        sum_values<Values, kRows, kChunks>(range, weights, at, 0, common, sums);
    }
    for (; at < end_dim; at += 8) sum_values<Values, kRows, 1>(range, weights, at, 0, common, sums);
    for (int r = 0; r < kRows; ++r) {
        if (tile.count[r] == common) continue;
        for (at = dim; at < end_dim; at += 8) {
            sum_values<Values, 1, 1>(range, weights + r * kAttentionRange, at, common, tile.count[r],
                                     sums + r * range.head_dim);
        }
    }
}

// ---- a tile
// ---------------------------------------------------------------------------------------------------

// The state of one head goes on with the sums of a range.
void merge(float* out, float* max, float* total, const float* part, float part_max, float part_total,
           int64_t head_dim) {
    const float new_max = part_max > *max ? part_max : *max;
    const float old_weight = exp_of(*max - new_max), part_weight = exp_of(part_max - new_max);
    const __m256 old_factor = _mm256_set1_ps(old_weight), part_factor = _mm256_set1_ps(part_weight);
    for (int64_t i = 0; i < head_dim; i += 8) {
        const __m256 more = _mm256_mul_ps(_mm256_loadu_ps(part + i), part_factor);
        _mm256_storeu_ps(out + i, _mm256_fmadd_ps(_mm256_loadu_ps(out + i), old_factor, more));
    }
    *total = *total * old_weight + part_total * part_weight;
    *max = new_max;
}

template <bool kQ8, int kRows>
void attend_tile(const Tile& tile, const Range& range, const Work& work, bool first_tile) {
    int64_t most = 0;
    for (int r = 0; r < kRows; ++r) most = tile.count[r] > most ? tile.count[r] : most;
    const int64_t n_groups = (most + kKeyGroup - 1) / kKeyGroup;
    int64_t group = 0;
    if constexpr (kQ8) {
        for (; group < n_groups; ++group) {
            const Ahead ahead = ahead_of(range, group, n_groups, first_tile);
            score_q8<kRows>(tile, range, group, ahead, work.scores);
        }
    } else {
        // Few heads: more positions at once, so that the sums do not wait for one another.
        constexpr int kBlocks = kRows == 1 ? 4 : kRows == 2 ? 2 : 1;
        for (; group + kBlocks <= n_groups; group += kBlocks) {
            Ahead ahead[kBlocks];
            for (int b = 0; b < kBlocks; ++b) ahead[b] = ahead_of(range, group + b, n_groups, first_tile);
            score_f16<kRows, kBlocks>(tile, range, group, ahead, work.scores);
        }
        for (; group < n_groups; ++group) {
            const Ahead ahead = ahead_of(range, group, n_groups, first_tile);
            score_f16<kRows, 1>(tile, range, group, &ahead, work.scores);
        }
    }
    float max[kRows], total[kRows];
    for (int r = 0; r < kRows; ++r) {
        float* scores = work.scores + r * kAttentionRange;
        if (range.softcap > 0) cap_scores(scores, tile.count[r], range.softcap);
        for (int64_t i = 0; i < tile.first[r]; ++i) scores[i] = -INFINITY;  // before the row's window
        softmax(scores, tile.count[r], &max[r], &total[r]);
    }
    __builtin_memset(work.sums, 0, static_cast<size_t>(kRows * range.head_dim) * sizeof(float));
    if constexpr (kQ8) {
        for (int64_t block = 0; block < range.head_dim / kQ32; ++block) {
            for (int64_t t = 0; t < most; t += 8) {
                const __m256 d = load_halves(range.value_scales[t / kKeyGroup] + block * range.scale_stride +
                                             t % kKeyGroup * 2);
                for (int r = 0; r < kRows; ++r) {
                    const int64_t at = r * kAttentionRange + t;
                    _mm256_storeu_ps(work.scaled + at, _mm256_mul_ps(_mm256_loadu_ps(work.scores + at), d));
                }
            }
            sum_dimensions<Q8Values, kRows>(tile, range, work.scaled, block * kQ32, block * kQ32 + kQ32,
                                            work.sums);
        }
    } else {
        sum_dimensions<F16Values, kRows>(tile, range, work.scores, 0, range.head_dim, work.sums);
    }
    for (int r = 0; r < kRows; ++r) {
        merge(tile.out[r], tile.max[r], tile.total[r], work.sums + r * range.head_dim, max[r], total[r],
              range.head_dim);
    }
}

template <bool kQ8, int kRows = kMaxRows>
void attend_tile_of(int64_t rows, const Tile& tile, const Range& range, const Work& work, bool first_tile) {
    if constexpr (kRows > 1) {
        if (rows < kRows) return attend_tile_of<kQ8, kRows - 1>(rows, tile, range, work, first_tile);
    }
    attend_tile<kQ8, kRows>(tile, range, work, first_tile);
}

// ---- all rows
// -------------------------------------------------------------------------------------------------

// A query (head_dim) rounded to 15 bits; returns its scale, NaN where it is not finite.
float round_query(const float* q, int16_t* qs, int64_t head_dim) {
    const __m256 sign_off = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256i bits = _mm256_setzero_si256();  // of |q|: NaN above infinity above all numbers
    for (int64_t i = 0; i < head_dim; i += 8) {
        const __m256 magnitude = _mm256_and_ps(_mm256_loadu_ps(q + i), sign_off);
        bits = _mm256_max_epu32(bits, _mm256_castps_si256(magnitude));
    }
    alignas(32) uint32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), bits);
    uint32_t max_bits = 0;
    for (const uint32_t lane : lanes) max_bits = lane > max_bits ? lane : max_bits;
    float max;
    __builtin_memcpy(&max, &max_bits, 4);
    if (max_bits >= 0x7f800000u || max < 1e-30f) {
        __builtin_memset(qs, 0, static_cast<size_t>(head_dim) * sizeof(int16_t));
        return max_bits >= 0x7f800000u ? __builtin_nanf("") : 0.0f;
    }
    const __m256 factor = _mm256_set1_ps(32767.0f / max);
    for (int64_t i = 0; i < head_dim; i += 8) {
        const __m256i words = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(q + i), factor));
        const __m128i packed =
            _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(qs + i), packed);
    }
    return max / 32767.0f;
}

// Where the groups of the range from `begin` on lie; those that the range needs.
void find_groups(const AttentionArgs& args, int64_t begin, int64_t end, Range* range) {
    const bool q8 = args.kv_type == KvType::Q8_0;
    const int64_t row_bytes = kv_row_bytes(args.kv_type, args.head_dim);
    range->head_dim = args.head_dim;
    range->scale_stride = padded_tokens(args.page_tokens) * 2;
    for (int64_t t = begin; t < end; t += kKeyGroup) {
        const int64_t page = t / args.page_tokens, in_page = t % args.page_tokens;
        const int64_t group = (t - begin) / kKeyGroup;
        range->keys[group] = args.k_pages[page] + in_page * row_bytes;
        const uint8_t* values = args.v_pages[page];
        range->values[group] = values + in_page * args.head_dim * (q8 ? 1 : 2);
        range->value_scales[group] =
            values + q8_value_scale_offset(in_page, 0, args.head_dim, args.page_tokens);
    }
}

template <bool kQ8>
void attend(const AttentionArgs& args) {
    const int64_t group = args.group, head_dim = args.head_dim, n_heads = args.n_rows * group;
    Work work;
    work.scores = args.scratch;
    work.scaled = work.scores + kMaxRows * kAttentionRange;
    work.sums = work.scaled + kMaxRows * kAttentionRange;
    float* factors = work.sums + kMaxRows * head_dim;               // (n_heads)
    auto* queries = reinterpret_cast<int16_t*>(factors + n_heads);  // (n_heads, head_dim)
    for (int64_t r = 0; r < args.n_rows; ++r) {
        const AttentionRow& row = args.rows[r];
        for (int64_t h = 0; h < group; ++h) {
            float& factor = factors[r * group + h];
            factor = args.scale;
            if constexpr (kQ8) {
                int16_t* query = queries + (r * group + h) * head_dim;
                factor *= round_query(row.q + h * head_dim, query, head_dim);
            }
            if (!args.fresh) continue;
            __builtin_memset(row.out + h * head_dim, 0, static_cast<size_t>(head_dim) * sizeof(float));
            row.max[h] = -INFINITY;
            row.total[h] = 0;
        }
    }
    Range range;
    range.softcap = args.softcap;
    for (int64_t begin = args.begin; begin < args.end; begin += kAttentionRange) {
        const int64_t end = begin + kAttentionRange < args.end ? begin + kAttentionRange : args.end;
        find_groups(args, begin, end, &range);
        Tile tile;
        int64_t n_tile = 0, left = 0;
        bool first_tile = true;
        const auto sees = [&](const AttentionRow& row) {
            return row.end > begin && row.begin < begin + kAttentionRange;
        };
        for (int64_t r = 0; r < args.n_rows; ++r) left += sees(args.rows[r]) ? group : 0;
        // The heads that see the range, in tiles of much the same size.
        for (int64_t r = 0; r < args.n_rows; ++r) {
            const AttentionRow& row = args.rows[r];
            if (!sees(row)) continue;
            const int64_t count = (row.end < end ? row.end : end) - begin;
            for (int64_t h = 0; h < group; ++h) {
                tile.q[n_tile] = row.q + h * head_dim;
                tile.qs[n_tile] = queries + (r * group + h) * head_dim;
                tile.factor[n_tile] = factors[r * group + h];
                tile.count[n_tile] = count;
                tile.first[n_tile] = row.begin > begin ? row.begin - begin : 0;
                tile.out[n_tile] = row.out + h * head_dim;
                tile.max[n_tile] = row.max + h;
                tile.total[n_tile] = row.total + h;
                ++n_tile;
                const int64_t n_tiles = (left + kMaxRows - 1) / kMaxRows;
                if (n_tile < (left + n_tiles - 1) / n_tiles) continue;
                attend_tile_of<kQ8>(n_tile, tile, range, work, first_tile);
                first_tile = false;
                left -= n_tile;
                n_tile = 0;
            }
        }
    }
    if (!args.finish) return;
    for (int64_t r = 0; r < args.n_rows; ++r) {
        const AttentionRow& row = args.rows[r];
        for (int64_t h = 0; h < group; ++h) {
            float* out = row.out + h * head_dim;
            for (int64_t i = 0; i < head_dim; ++i) out[i] /= row.total[h];
        }
    }
}

bool takes(int64_t head_dim, int64_t page_tokens) {
    const bool whole_groups = page_tokens % kKeyGroup == 0;
    const bool aligned = kAttentionRange % page_tokens == 0 || page_tokens % kAttentionRange == 0;
    return head_dim % 8 == 0 && whole_groups && aligned;
}

void attention(const AttentionArgs& args) {
    if (!takes(args.head_dim, args.page_tokens)) return scalar::attention(args);
    args.kv_type == KvType::F16 ? attend<false>(args) : attend<true>(args);
}

void merge_attention(const AttentionMerge& args) {
    if (!takes(args.head_dim, args.page_tokens)) return scalar::merge_attention(args);
    for (int64_t head = 0; head < args.group; ++head) {
        float* out = args.out + head * args.head_dim;
        __builtin_memset(out, 0, static_cast<size_t>(args.head_dim) * sizeof(float));
        float max = -INFINITY, total = 0;
        for (int64_t p = 0; p < args.n_parts; ++p) {
            const float* part = args.parts + p * args.part_stride;
            const float* part_max = part + args.group * args.head_dim;
            if (part_max[args.group + head] == 0) continue;
            merge(out, &max, &total, part + head * args.head_dim, part_max[head], part_max[args.group + head],
                  args.head_dim);
        }
        for (int64_t i = 0; i < args.head_dim; ++i) out[i] /= total;
    }
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
    table.merge_attention = merge_attention;
}

}  // namespace quantd::QUANTD_LEVEL
