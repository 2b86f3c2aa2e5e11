// Attention of query rows against cached keys and values, and their cached forms, 128 bits wide.
//
// Up to four query heads share the loaded keys and values.  A head's numbers depend on no other: keys meet it
// in lanes, sixteen positions side by side, and values are added in order of position, whichever heads are
// beside it.
#include <math.h>

#include "blocks.h"
#include "half.h"
#include "kernels/attention/kv_layout.h"
#include "kernels/levels.h"
#include "kernels/neon.h"

namespace quantd::neon {
namespace {

constexpr int kHeads = 4;              // query heads of a tile
constexpr int64_t kLanes = kKeyGroup;  // positions side by side
constexpr float kLowest = -INFINITY;

// One query head within one range of positions.
struct Head {
    const float* q;  // (head_dim)
    float* out;      // (head_dim), max, total: the row's state
    float* max;
    float* total;
    int64_t begin, end;  // the positions of the range that it sees
    float* weights;      // (kAttentionRange) scores, then weights, from the range's first position on
    float* part;         // (head_dim) weighted sum of this range
};

// Sixteen lanes.
struct Wide {
    float32x4_t v[4];
};

Wide zeros() {
    const float32x4_t zero = vdupq_n_f32(0.0f);
    return {{zero, zero, zero, zero}};
}

Wide from_halves(const uint8_t* p) {
    Wide wide;
    for (int i = 0; i < 4; ++i) wide.v[i] = vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p + 8 * i)));
    return wide;
}

Wide from_bytes(int8x16_t bytes) {
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
             vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}

// sum += wide * factor
void add(Wide& sum, const Wide& wide, float factor) {
    for (int i = 0; i < 4; ++i) sum.v[i] = vfmaq_n_f32(sum.v[i], wide.v[i], factor);
}

// q . key of the group's sixteen positions, for each of kCount heads.
template <int kCount>
void dot_f16(const Head* heads, const uint8_t* group, int64_t head_dim, Wide* dots) {
    for (int h = 0; h < kCount; ++h) dots[h] = zeros();
    for (int64_t i = 0; i < head_dim; ++i) {
        const Wide keys = from_halves(group + i * kLanes * 2);
        for (int h = 0; h < kCount; ++h) add(dots[h], keys, heads[h].q[i]);
    }
}

template <int kCount>
void dot_q8_0(const Head* heads, const uint8_t* group, int64_t head_dim, Wide* dots) {
    for (int h = 0; h < kCount; ++h) dots[h] = zeros();
    for (int64_t block = 0; block < head_dim / kQ32; ++block) {
        Wide sums[kCount];
        for (int h = 0; h < kCount; ++h) sums[h] = zeros();
        for (int64_t i = block * kQ32; i < (block + 1) * kQ32; i += 2) {
            const int8x16x2_t pair = vld2q_s8(reinterpret_cast<const int8_t*>(group + i * kLanes));
            const Wide first = from_bytes(pair.val[0]), second = from_bytes(pair.val[1]);
            for (int h = 0; h < kCount; ++h) {
                add(sums[h], first, heads[h].q[i]);
                add(sums[h], second, heads[h].q[i + 1]);
            }
        }
        const Wide d = from_halves(group + kLanes * head_dim + block * kLanes * 2);
        for (int h = 0; h < kCount; ++h) {
            for (int v = 0; v < 4; ++v) dots[h].v[v] = vfmaq_f32(dots[h].v[v], sums[h].v[v], d.v[v]);
        }
    }
}

float32x4_t score(float32x4_t dot, float scale, float softcap) {
    const float32x4_t scaled = vmulq_n_f32(dot, scale);
    if (softcap <= 0) return scaled;
    return vmulq_n_f32(vector_tanh(vdivq_f32(scaled, vdupq_n_f32(softcap))), softcap);
}

// Scores of the range that begins at `range`, for all positions that any of the heads sees.
template <int kCount>
void score_range(const AttentionArgs& args, const Head* heads, int64_t range, int64_t begin, int64_t end) {
    const bool f16 = args.kv_type == KvType::F16;
    const int64_t group_bytes = f16 ? kLanes * args.head_dim * 2 : q8_key_group_bytes(args.head_dim);
    for (int64_t t = begin / kLanes * kLanes; t < end; t += kLanes) {
        const uint8_t* group =
            args.k_pages[t / args.page_tokens] + t % args.page_tokens / kLanes * group_bytes;
        Wide dots[kCount];
        f16 ? dot_f16<kCount>(heads, group, args.head_dim, dots)
            : dot_q8_0<kCount>(heads, group, args.head_dim, dots);
        for (int h = 0; h < kCount; ++h) {
            for (int v = 0; v < 4; ++v) {
                vst1q_f32(heads[h].weights + (t - range) + 4 * v,
                          score(dots[h].v[v], args.scale, args.softcap));
            }
        }
    }
}

// Scores to weights.  Positions that the head does not see get 0; a NaN among the scores stays.
struct Softmax {
    float max, total;
};
Softmax weigh(const Head& head, int64_t range) {
    const int64_t first = head.begin - range, last = head.end - range;
    for (int64_t i = first / 4 * 4; i < first; ++i) head.weights[i] = kLowest;
    for (int64_t i = last; i % 4 != 0; ++i) head.weights[i] = kLowest;
    float32x4_t largest = vdupq_n_f32(kLowest);
    for (int64_t i = first / 4 * 4; i < last; i += 4) {
        largest = vmaxnmq_f32(largest, vld1q_f32(head.weights + i));
    }
    const float max = vmaxvq_f32(largest);
    float32x4_t sum = vdupq_n_f32(0.0f);
    for (int64_t i = first / 4 * 4; i < last; i += 4) {
        const float32x4_t scores = vld1q_f32(head.weights + i);
        float32x4_t weights = vector_exp(vsubq_f32(scores, vdupq_n_f32(max)));
        uint32_t seen[4];
        for (int64_t lane = 0; lane < 4; ++lane) {
            seen[lane] = i + lane >= first && i + lane < last ? 0xffffffffu : 0;
        }
        weights = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(weights), vld1q_u32(seen)));
        vst1q_f32(head.weights + i, weights);
        sum = vaddq_f32(sum, weights);
    }
    return {max, vaddvq_f32(sum)};
}

// part += weight * value for positions [begin, end), all of which the heads see.  kWide: the value's elements
// a time.
template <int kCount>
void add_values(const AttentionArgs& args, const Head* heads, int64_t range, int64_t begin, int64_t end) {
    const bool f16 = args.kv_type == KvType::F16;
    for (int64_t i = 0; i < args.head_dim; i += 16) {
        Wide sums[kCount];
        for (int h = 0; h < kCount; ++h) {
            for (int v = 0; v < 4; ++v) sums[h].v[v] = vld1q_f32(heads[h].part + i + 4 * v);
        }
        for (int64_t t = begin; t < end; ++t) {
            const uint8_t* page = args.v_pages[t / args.page_tokens];
            const int64_t at = t % args.page_tokens;
            if (f16) {
                const Wide value = from_halves(page + value_offset(at, i, args.head_dim, 2));
                for (int h = 0; h < kCount; ++h) add(sums[h], value, heads[h].weights[t - range]);
            } else {
                const int8_t* bytes = reinterpret_cast<const int8_t*>(page + at * args.head_dim + i);
                const Wide value = from_bytes(vld1q_s8(bytes));
                const float d = float_of_half(
                    page + q8_value_scale_offset(at, i / kQ32, args.head_dim, args.page_tokens));
                for (int h = 0; h < kCount; ++h) add(sums[h], value, heads[h].weights[t - range] * d);
            }
        }
        for (int h = 0; h < kCount; ++h) {
            for (int v = 0; v < 4; ++v) vst1q_f32(heads[h].part + i + 4 * v, sums[h].v[v]);
        }
    }
}

// As the scalar level: a state goes on with a part of later positions.
void merge(const Head& head, const Softmax& softmax, int64_t head_dim) {
    const float new_max = softmax.max > *head.max ? softmax.max : *head.max;
    const float old_weight = expf(*head.max - new_max), part_weight = expf(softmax.max - new_max);
    for (int64_t i = 0; i < head_dim; i += 4) {
        const float32x4_t old = vmulq_n_f32(vld1q_f32(head.out + i), old_weight);
        vst1q_f32(head.out + i, vaddq_f32(old, vmulq_n_f32(vld1q_f32(head.part + i), part_weight)));
    }
    *head.total = *head.total * old_weight + softmax.total * part_weight;
    *head.max = new_max;
}

// kCount heads and the range that begins at `range`.
template <int kCount>
void attend(const AttentionArgs& args, const Head* heads, int64_t range) {
    int64_t begin = heads[0].begin, end = heads[0].end;  // seen by any
    int64_t all_begin = begin, all_end = end;            // seen by all
    for (int h = 1; h < kCount; ++h) {
        begin = heads[h].begin < begin ? heads[h].begin : begin;
        end = heads[h].end > end ? heads[h].end : end;
        all_begin = heads[h].begin > all_begin ? heads[h].begin : all_begin;
        all_end = heads[h].end < all_end ? heads[h].end : all_end;
    }
    if (all_end < all_begin) all_end = all_begin;
    score_range<kCount>(args, heads, range, begin, end);
    Softmax softmax[kCount];
    for (int h = 0; h < kCount; ++h) {
        const Head& head = heads[h];
        softmax[h] = weigh(head, range);
        __builtin_memset(head.part, 0, static_cast<std::size_t>(args.head_dim) * sizeof(float));
        add_values<1>(args, &head, range, head.begin, all_begin < head.end ? all_begin : head.end);
    }
    add_values<kCount>(args, heads, range, all_begin, all_end);
    for (int h = 0; h < kCount; ++h) {
        const Head& head = heads[h];
        add_values<1>(args, &head, range, all_end > head.begin ? all_end : head.begin, head.end);
        merge(head, softmax[h], args.head_dim);
    }
}

void attend_tile(const AttentionArgs& args, const Head* heads, int count, int64_t range) {
    if (count == 4) return attend<4>(args, heads, range);
    if (count == 3) return attend<3>(args, heads, range);
    if (count == 2) return attend<2>(args, heads, range);
    attend<1>(args, heads, range);
}

void begin_rows(const AttentionArgs& args) {
    for (int64_t r = 0; r < args.n_rows; ++r) {
        const AttentionRow& row = args.rows[r];
        __builtin_memset(row.out, 0, static_cast<std::size_t>(args.group * args.head_dim) * sizeof(float));
        for (int64_t h = 0; h < args.group; ++h) {
            row.max[h] = kLowest;
            row.total[h] = 0;
        }
    }
}

// Head sizes and page sizes that fill the lanes.
bool takes(const AttentionArgs& args) {
    return args.head_dim % 16 == 0 && args.page_tokens % kLanes == 0 && args.kv_type != KvType::F32;
}

void attention(const AttentionArgs& args) {
    if (!takes(args)) return scalar::attention(args);
    if (args.fresh) begin_rows(args);
    const int64_t each = kAttentionRange + args.head_dim;  // floats of scratch of one head of a tile
    for (int64_t range = args.begin; range < args.end; range += kAttentionRange) {
        Head tile[kHeads];
        int count = 0;
        for (int64_t i = 0; i < args.n_rows * args.group; ++i) {
            const AttentionRow& row = args.rows[i / args.group];
            const int64_t h = i % args.group;
            int64_t end = range + kAttentionRange < args.end ? range + kAttentionRange : args.end;
            if (row.end < end) end = row.end;
            const int64_t begin = row.begin > range ? row.begin : range;
            if (begin >= end) continue;
            float* scratch = args.scratch + count * each;
            tile[count++] = {row.q + h * args.head_dim,
                             row.out + h * args.head_dim,
                             row.max + h,
                             row.total + h,
                             begin,
                             end,
                             scratch,
                             scratch + kAttentionRange};
            if (count == kHeads) {
                attend_tile(args, tile, count, range);
                count = 0;
            }
        }
        if (count > 0) attend_tile(args, tile, count, range);
    }
    for (int64_t r = 0; args.finish && r < args.n_rows; ++r) {
        const AttentionRow& row = args.rows[r];
        for (int64_t i = 0; i < args.group * args.head_dim; ++i) row.out[i] /= row.total[i / args.head_dim];
    }
}

void store_f16(const float* x, uint8_t* out, int64_t n) {
    for (int64_t i = 0; i < n; i += 4) {
        float lanes[4] = {};
        const int64_t count = n - i < 4 ? n - i : 4;
        __builtin_memcpy(lanes, x + i, static_cast<std::size_t>(count) * sizeof(float));
        uint16_t halves[4];
        vst1_u16(halves, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(lanes))));
        __builtin_memcpy(out + 2 * i, halves, static_cast<std::size_t>(count) * 2);
    }
}

// The same operations as the scalar level, hence the same bytes.
void store_q8_0(const float* x, uint8_t* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ32; ++b, x += kQ32, out += sizeof(BlockQ8_0)) {
        uint32x4_t largest = vdupq_n_u32(0);
        for (int i = 0; i < 32; i += 4) {
            const uint32x4_t bits = vreinterpretq_u32_f32(vld1q_f32(x + i));
            largest = vmaxq_u32(largest, vandq_u32(bits, vdupq_n_u32(0x7fffffff)));
        }
        const uint32_t max_bits = vmaxvq_u32(largest);
        float max;
        __builtin_memcpy(&max, &max_bits, 4);
        const bool finite = max_bits < 0x7f800000u;
        const uint16_t d = finite ? f32_to_f16(max / 127.0f) : uint16_t{0x7e00};
        __builtin_memcpy(out, &d, 2);
        if (!finite || !(max > 1e-9f)) {
            __builtin_memset(out + 2, 0, 32);
            continue;
        }
        const float factor = 127.0f / max;
        int8_t* qs = reinterpret_cast<int8_t*>(out + 2);
        for (int i = 0; i < 32; i += 8) {
            const auto words = [&](int at) {
                return vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + at), factor)));
            };
            vst1_s8(qs + i, vqmovn_s16(vcombine_s16(words(i), words(i + 4))));
        }
    }
}

void store_kv(const float* x, uint8_t* out, int64_t head_dim, KvType type) {
    if (type == KvType::F32) {
        __builtin_memcpy(out, x, static_cast<std::size_t>(head_dim) * sizeof(float));
        return;
    }
    type == KvType::F16 ? store_f16(x, out, head_dim) : store_q8_0(x, out, head_dim);
}

}  // namespace

// States are merged by the scalar level.
void add_attention(Kernels& table) {
    table.store_kv = store_kv;
    table.attention = attention;
}

}  // namespace quantd::neon
