// The second moments of the inputs of the matrices while a text runs through a program, within runs of 256
// columns: the blocks on the diagonal of each layer's Hessian, by which the quantizer carries errors from
// column to column.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "threads.h"

namespace quantd {

class InputMoments {
  public:
    static constexpr int64_t kColumns = 256;  // of a run; the last one of a row may be narrower

    // Where the moments of one matrix lie; matrices that read the same input share them.
    struct Place {
        int64_t first_run = -1;  // -1: none are kept
        int64_t n_runs = 0;
        bool adds = false;  // the one of those that share whose inputs are counted
    };

    // inputs: groups of matrices that read one input of so many columns each.  Rows that are no multiple of
    // 32 are left out.
    struct Group {
        std::vector<size_t> matrices;
        int64_t n_columns;
    };
    InputMoments(size_t n_matrices, const std::vector<Group>& groups);

    const Place& place(size_t matrix) const { return places_.at(matrix); }
    int64_t n_runs() const { return n_runs_; }  // of all matrices

    // (n_runs, kColumns, kColumns) zeros that the caller keeps: sums of products go on and above the
    // diagonals.
    void keep_in(float* sums) { sums_ = sums; }

    // Adds rows [0, n_rows) of the input of a matrix: row r starts at rows + r * stride.  The same sums for
    // every thread count.
    void add(size_t matrix, int64_t n_columns, const float* rows, int64_t stride, int64_t n_rows,
             ThreadPool& pool) noexcept;

  private:
    std::vector<Place> places_;
    int64_t n_runs_ = 0;
    float* sums_ = nullptr;
};

}  // namespace quantd
