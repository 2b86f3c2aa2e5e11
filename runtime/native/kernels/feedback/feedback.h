// Error feedback of the quantizer: the levels of 256 weights of a row chosen one after the other, each making
// up for what rounding those before it did to the row's product with the calibration text's inputs.
//
// Every level compiles the same source (level.h).  All arithmetic is elementwise over sixteen rows, or over
// the columns of a sum, in a written order and without contraction, so every level gives the same levels.
// Source: GPTQ (Frantar et al. 2022) in the form of LDLQ (Chee et al. 2023), then coordinate descent on the
// same error.
#pragma once

#include <cstdint>

namespace quantd::feedback {

constexpr int64_t kColumns = 256;  // of a run; a row's last run may be narrower
constexpr int64_t kRows = 16;      // rows that are worked on side by side

// A run of n columns of sixteen rows, the columns in the order in which they are chosen.  A weight decodes to
// step * level(q) - offset, where level(q) is q, or book[q].
struct Run {
    int64_t n;            // even, at most kColumns
    const float* x;       // (n, kRows) weights
    const float* step;    // (n, kRows) 0: all levels are the same value
    const float* offset;  // (n, kRows)
    const int8_t* book;   // (n_levels), rising; nullptr: level(q) = q
    int n_levels;
    // The error is e^T moments e, e the decoded weights minus x; moments = R diag(pivots) R^T, R upper
    // triangular with ones on the diagonal and `feedback` above it.
    const float* moments;           // (kColumns, kColumns)
    const float* inverse_diagonal;  // (kColumns) of moments
    const float* feedback;          // (kColumns, kColumns)
    const float* pivots;            // (kColumns)
    uint8_t* q;                     // (n, kRows) in: as encoded; out: chosen, with no more error
};

struct Functions {
    void (*choose)(const Run& run);

    // sums (kColumns, kColumns): row j, columns k >= j, j in [first, last), gains the products of columns j
    // and k of rows (n_rows, stride); first, last and n are multiples of 32.
    void (*add_products)(const float* rows, int64_t stride, int64_t n_rows, int64_t n, int64_t first,
                         int64_t last, float* sums);
};

extern const Functions kScalar;
#if defined(__x86_64__)
extern const Functions kAvx2;
extern const Functions kAvx512Vnni;
#endif

// Those of a level that this CPU has; nullptr: the level that QUANTD_CPU_LEVEL names, else the best.
// Throws std::invalid_argument.
const Functions& functions_for(const char* level);

}  // namespace quantd::feedback
