// Error feedback over the rows of a tensor whose blocks are encoded: their levels are chosen again, so that
// what the tensor's product with the calibration text's inputs loses becomes smaller.  Scales stay.
#pragma once

#include <cstdint>
#include <vector>

#include "quantize.h"

namespace quantd {

// What the levels of one matrix are chosen by: the second moments of its input, within runs of 256 columns.
class FeedbackFactors {
  public:
    // moments (n_runs, 256, 256): sums of products of columns of `n_seen` inputs, on and above the diagonal;
    // the rest is not read.  n_runs is n_cols / 256, rounded up.  The moments of fewer inputs are drawn
    // nearer to their diagonal.  A run whose moments are zero or not finite is left as encoded. The same bits
    // for every thread count and level.  Throws std::invalid_argument for n_cols that is not a multiple of 32
    // and for n_seen < 1.
    FeedbackFactors(const float* moments, int64_t n_cols, int64_t n_seen, int n_threads);

    struct Run {
        bool is_usable = false;
        std::vector<uint8_t> order;           // (n) columns in the order in which they are chosen
        std::vector<float> moments;           // (256, 256) in that order, damped
        std::vector<float> inverse_diagonal;  // (256) of moments
        std::vector<float> feedback;          // (256, 256)
        std::vector<float> pivots;            // (256)
    };
    int64_t n_cols() const { return n_cols_; }
    const std::vector<Run>& runs() const { return runs_; }

  private:
    int64_t n_cols_;
    std::vector<Run> runs_;
};

// Chooses the levels of job.out, the blocks that quantize_rows made, again.  The same bytes for every thread
// count and level.  job.importance is not used.  Throws std::invalid_argument as quantize_rows does, for a
// type without levels and for factors of another width.
void feed_back(const QuantizeRows& job, const FeedbackFactors& factors);

}  // namespace quantd
