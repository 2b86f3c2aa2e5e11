// Rows of a tensor to another type, on all cores.
#pragma once

#include <cstdint>
#include <string>

#include "types.h"

namespace quantd {

struct QuantizeRows {
    const uint8_t* source;  // (n_rows, n_cols) F32, F16 or BF16, without gaps
    Type source_type;
    int64_t n_rows;
    int64_t n_cols;  // a multiple of the target's block
    Type target_type;
    uint8_t* out;       // (n_rows, n_cols) in the target's blocks, without gaps
    int n_threads;      // >= 1
    const char* level;  // nullptr: QUANTD_CPU_LEVEL, else the best of this CPU
    // (n_cols) mean square of the input that each column meets, finite and not negative; nullptr: nothing is
    // known. Only ratios count.
    const float* importance = nullptr;
};

// The first element that cannot be quantized; row < 0: none.
struct QuantizeFault {
    int64_t row = -1;
    int64_t column = -1;
    float value = 0.0f;  // not finite, or beyond what the type's f16 scale can carry
};

// The same bytes for every thread count and level.  On a fault the contents of `out` are unspecified.
// Throws std::invalid_argument for types without a loader or encoder, an unknown level and a bad importance.
QuantizeFault quantize_rows(const QuantizeRows& job);

// The first of n elements that is an infinity or a NaN; -1: none.  Throws std::invalid_argument for a type
// that is not F32, F16 or BF16.
int64_t find_not_finite(const uint8_t* source, Type source_type, int64_t n);

// What encoding lost: sums over all elements of the rows that were looked at.
struct EncodingLoss {
    double lost = 0.0;   // squares of the differences
    double whole = 0.0;  // squares of the values
};

// Compares job.source with job.out after quantize_rows, on rows first_row, first_row + every_rows, ... below
// n_rows. The same bits at every level: the sums run in eight lanes of double, in a fixed order.  Throws as
// quantize_rows does.
EncodingLoss encoding_loss(const QuantizeRows& job, int64_t first_row, int64_t every_rows);

}  // namespace quantd
