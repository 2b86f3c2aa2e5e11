// Attention of query rows against cached keys and values, and the form in which they are cached: the
// specification.  The softmax is computed range by range, so that no buffer grows with the context.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "blocks.h"
#include "half.h"
#include "kernels/attention/kv_layout.h"
#include "kernels/levels.h"

namespace quantd::scalar {
namespace {

void store_f16(const float* x, uint8_t* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const uint16_t half = f32_to_f16(x[i]);
        std::memcpy(out + i * 2, &half, 2);
    }
}

void store_q8_0(const float* x, uint8_t* out, int64_t n) {
    for (int64_t b = 0; b < n / kQ32; ++b, x += kQ32) {
        uint32_t max_bits = 0;  // of |x|: NaN above infinity above all numbers
        for (int i = 0; i < 32; ++i) {
            const uint32_t bits = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
            max_bits = bits > max_bits ? bits : max_bits;
        }
        const float max = std::bit_cast<float>(max_bits);
        const bool finite = max_bits < 0x7f800000u;
        BlockQ8_0 block{};
        block.d = finite ? f32_to_f16(max / 127.0f) : uint16_t{0x7e00};  // NaN stays visible
        // Below 1e-9 the scale is zero in f16 anyway.
        const float inverse = finite && max > 1e-9f ? 127.0f / max : 0.0f;
        for (int i = 0; finite && i < 32; ++i) block.qs[i] = static_cast<int8_t>(std::lrintf(x[i] * inverse));
        std::memcpy(out + b * int64_t(sizeof(block)), &block, sizeof(block));
    }
}

void store_kv(const float* x, uint8_t* out, int64_t head_dim, KvType type) {
    if (type == KvType::F32) {
        std::memcpy(out, x, static_cast<size_t>(head_dim) * sizeof(float));
        return;
    }
    type == KvType::F16 ? store_f16(x, out, head_dim) : store_q8_0(x, out, head_dim);
}

// Key or value t of a run as floats.
void load_key(const uint8_t* run, int64_t t, int64_t head_dim, KvType type, float* out) {
    for (int64_t i = 0; i < head_dim; ++i) {
        if (type == KvType::F32) {
            std::memcpy(out + i, run + key_offset(t, i, head_dim, 4), 4);
        } else if (type == KvType::F16) {
            uint16_t half;
            std::memcpy(&half, run + key_offset(t, i, head_dim, 2), 2);
            out[i] = f16_to_f32(half);
        } else {
            uint16_t d;
            std::memcpy(&d, run + q8_key_scale_offset(t, i / kQ32, head_dim), 2);
            out[i] = f16_to_f32(d) * float(static_cast<int8_t>(run[q8_key_offset(t, i, head_dim)]));
        }
    }
}

void load_value(const uint8_t* run, int64_t t, int64_t head_dim, int64_t page_tokens, KvType type,
                float* out) {
    if (type == KvType::F32) return dequantize_f32(run + value_offset(t, 0, head_dim, 4), out, head_dim);
    if (type == KvType::F16) return dequantize_f16(run + value_offset(t, 0, head_dim, 2), out, head_dim);
    for (int64_t i = 0; i < head_dim; ++i) {
        uint16_t d;
        std::memcpy(&d, run + q8_value_scale_offset(t, i / kQ32, head_dim, page_tokens), 2);
        out[i] = f16_to_f32(d) * float(static_cast<int8_t>(run[t * head_dim + i]));
    }
}

// The state of one query head: (out (head_dim), max, total) goes on with a part of later positions.
void merge(float* out, float* max, float* total, const float* part, float part_max, float part_total,
           int64_t head_dim) {
    const float new_max = part_max > *max ? part_max : *max;
    // A head that has seen nothing yet has a weight of zero, also where the part saw NaN only.
    const float old_weight = std::exp(*max - new_max), part_weight = std::exp(part_max - new_max);
    for (int64_t i = 0; i < head_dim; ++i) out[i] = out[i] * old_weight + part[i] * part_weight;
    *total = *total * old_weight + part_total * part_weight;
    *max = new_max;
}

void begin_head(float* out, float* max, float* total, int64_t head_dim) {
    for (int64_t i = 0; i < head_dim; ++i) out[i] = 0;
    *max = -std::numeric_limits<float>::infinity();
    *total = 0;
}

// Positions [begin, end) of one range for one query head.
void attend_range(const AttentionArgs& args, const AttentionRow& row, int64_t head, int64_t begin,
                  int64_t end) {
    const int64_t head_dim = args.head_dim;
    float* vector = args.scratch;      // (head_dim) one key or value
    float* part = vector + head_dim;   // (head_dim)
    float* weights = part + head_dim;  // (kAttentionRange) scores, then weights
    const float* q = row.q + head * head_dim;
    float max, total;
    begin_head(part, &max, &total, head_dim);
    for (int64_t t = begin; t < end; ++t) {
        load_key(args.k_pages[t / args.page_tokens], t % args.page_tokens, head_dim, args.kv_type, vector);
        double dot = 0;
        for (int64_t i = 0; i < head_dim; ++i) dot += double(q[i]) * double(vector[i]);
        float score = static_cast<float>(dot) * args.scale;
        if (args.softcap > 0) score = args.softcap * std::tanh(score / args.softcap);
        weights[t - begin] = score;
        max = score > max ? score : max;
    }
    for (int64_t t = begin; t < end; ++t) {
        const float weight = std::exp(weights[t - begin] - max);
        total += weight;
        load_value(args.v_pages[t / args.page_tokens], t % args.page_tokens, head_dim, args.page_tokens,
                   args.kv_type, vector);
        for (int64_t i = 0; i < head_dim; ++i) part[i] += weight * vector[i];
    }
    merge(row.out + head * head_dim, row.max + head, row.total + head, part, max, total, head_dim);
}

}  // namespace

void attention(const AttentionArgs& args) {
    for (int64_t r = 0; r < args.n_rows; ++r) {
        const AttentionRow& row = args.rows[r];
        const int64_t end = row.end < args.end ? row.end : args.end;
        for (int64_t head = 0; head < args.group; ++head) {
            float* out = row.out + head * args.head_dim;
            if (args.fresh) begin_head(out, row.max + head, row.total + head, args.head_dim);
            for (int64_t begin = args.begin; begin < end; begin += kAttentionRange) {
                const int64_t range_end = begin + kAttentionRange;
                if (range_end <= row.begin) continue;
                attend_range(args, row, head, begin > row.begin ? begin : row.begin,
                             range_end < end ? range_end : end);
            }
            for (int64_t i = 0; args.finish && i < args.head_dim; ++i) out[i] /= row.total[head];
        }
    }
}

void merge_attention(const AttentionMerge& args) {
    for (int64_t head = 0; head < args.group; ++head) {
        float* out = args.out + head * args.head_dim;
        float max, total;
        begin_head(out, &max, &total, args.head_dim);
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

void add_attention(Kernels& table) {
    table.store_kv = store_kv;
    table.attention = attention;
    table.merge_attention = merge_attention;
}

}  // namespace quantd::scalar
