// What each CPU level offers.  A family's add_* function writes its kernels into the table; levels are added
// from narrow to wide, so a wide level keeps the narrower kernel wherever it has none of its own.  Functions
// of a wide level may only be called, add_* included, on a CPU that has the level.
#pragma once

#include "kernels.h"

namespace quantd::scalar {
void add_dequantize(Kernels& table);
void add_matmul(Kernels& table);
void add_matmul_q8_32(Kernels& table);
void add_matmul_q8_256(Kernels& table);
void add_activation(Kernels& table);
void add_elementwise(Kernels& table);
void add_rope(Kernels& table);
void add_attention(Kernels& table);

// The exact expansion of each type, which the generic matmul of every level can use.
// row: n elements in blocks, any alignment; out: (n).
void dequantize_f32(const uint8_t* row, float* out, int64_t n);
void dequantize_f16(const uint8_t* row, float* out, int64_t n);
void dequantize_bf16(const uint8_t* row, float* out, int64_t n);
void dequantize_q8_0(const uint8_t* row, float* out, int64_t n);
void dequantize_q4_0(const uint8_t* row, float* out, int64_t n);
void dequantize_q4_1(const uint8_t* row, float* out, int64_t n);
void dequantize_q5_0(const uint8_t* row, float* out, int64_t n);
void dequantize_q5_1(const uint8_t* row, float* out, int64_t n);
void dequantize_q2_k(const uint8_t* row, float* out, int64_t n);
void dequantize_q3_k(const uint8_t* row, float* out, int64_t n);
void dequantize_q4_k(const uint8_t* row, float* out, int64_t n);
void dequantize_q5_k(const uint8_t* row, float* out, int64_t n);
void dequantize_q6_k(const uint8_t* row, float* out, int64_t n);
void dequantize_iq4_nl(const uint8_t* row, float* out, int64_t n);
void dequantize_iq4_xs(const uint8_t* row, float* out, int64_t n);
void dequantize_mxfp4(const uint8_t* row, float* out, int64_t n);

// For the head and page sizes that a wide level does not take.
void attention(const AttentionArgs& args);
void merge_attention(const AttentionMerge& args);
}  // namespace quantd::scalar

namespace quantd::avx2 {
void add_dequantize(Kernels& table);
void add_matmul(Kernels& table);
void add_matmul_q8_32(Kernels& table);
void add_matmul_q8_256(Kernels& table);
void add_activation(Kernels& table);
void add_elementwise(Kernels& table);
void add_rope(Kernels& table);
void add_attention(Kernels& table);
}  // namespace quantd::avx2

namespace quantd::avxvnni {
void add_matmul_q8_32(Kernels& table);
void add_matmul_q8_256(Kernels& table);
void add_attention(Kernels& table);
}  // namespace quantd::avxvnni

namespace quantd::avx512vnni {
void add_matmul(Kernels& table);
void add_matmul_q8_32(Kernels& table);
void add_matmul_q8_256(Kernels& table);
void add_activation(Kernels& table);
void add_elementwise(Kernels& table);
void add_attention(Kernels& table);
}  // namespace quantd::avx512vnni

namespace quantd::neon {
void add_matmul(Kernels& table);
void add_matmul_q8_32(Kernels& table);
void add_matmul_q8_256(Kernels& table);
void add_activation(Kernels& table);
void add_elementwise(Kernels& table);
void add_rope(Kernels& table);
void add_attention(Kernels& table);
}  // namespace quantd::neon

namespace quantd::neondot {
void add_matmul_q8_32(Kernels& table);
void add_matmul_q8_256(Kernels& table);
}  // namespace quantd::neondot
