// Attention of one query row against cached keys and values, and the form in which they are cached: the
// specification.  The softmax is computed page by page with a running maximum, so that no buffer grows with
// the context.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "blocks.h"
#include "half.h"
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

}  // namespace

void attention(const AttentionArgs& args) {
    const int64_t head_dim = args.head_dim, group = args.group;
    const int64_t row_bytes = kv_row_bytes(args.kv_type, head_dim);
    auto expand = args.kv_type == KvType::F32   ? dequantize_f32
                  : args.kv_type == KvType::F16 ? dequantize_f16
                                                : dequantize_q8_0;
    float* row = args.scratch;       // (head_dim) one key or value
    float* max = row + head_dim;     // (group) running maximum of the scores
    float* total = max + group;      // (group) running sum of the weights
    float* weights = total + group;  // (group, page_tokens) scores, then weights, of one page
    for (int64_t g = 0; g < group; ++g) {
        max[g] = -std::numeric_limits<float>::infinity();
        total[g] = 0;
        for (int64_t i = 0; i < head_dim; ++i) args.out[g * head_dim + i] = 0;
    }
    for (int64_t start = 0, page = 0; start < args.n_positions; start += args.page_tokens, ++page) {
        const int64_t left = args.n_positions - start;
        const int64_t count = left < args.page_tokens ? left : args.page_tokens;
        for (int64_t t = 0; t < count; ++t) {
            expand(args.k_pages[page] + t * row_bytes, row, head_dim);
            for (int64_t g = 0; g < group; ++g) {
                double dot = 0;
                for (int64_t i = 0; i < head_dim; ++i)
                    dot += double(args.q[g * head_dim + i]) * double(row[i]);
                weights[g * args.page_tokens + t] = static_cast<float>(dot) * args.scale;
            }
        }
        for (int64_t g = 0; g < group; ++g) {
            float* page_weights = weights + g * args.page_tokens;
            float new_max = max[g];
            for (int64_t t = 0; t < count; ++t)
                new_max = page_weights[t] > new_max ? page_weights[t] : new_max;
            const float shrink = max[g] == new_max ? 1.0f : std::exp(max[g] - new_max);
            max[g] = new_max;
            total[g] *= shrink;
            for (int64_t i = 0; i < head_dim; ++i) args.out[g * head_dim + i] *= shrink;
            for (int64_t t = 0; t < count; ++t) {
                page_weights[t] = std::exp(page_weights[t] - new_max);
                total[g] += page_weights[t];
            }
        }
        for (int64_t t = 0; t < count; ++t) {
            expand(args.v_pages[page] + t * row_bytes, row, head_dim);
            for (int64_t g = 0; g < group; ++g) {
                const float weight = weights[g * args.page_tokens + t];
                for (int64_t i = 0; i < head_dim; ++i) args.out[g * head_dim + i] += weight * row[i];
            }
        }
    }
    for (int64_t g = 0; g < group; ++g) {
        for (int64_t i = 0; i < head_dim; ++i) args.out[g * head_dim + i] /= total[g];
    }
}

void add_attention(Kernels& table) {
    table.store_kv = store_kv;
    table.attention = attention;
}

}  // namespace quantd::scalar
