// What the inputs of the matrices look like while a text runs through a program: the diagonal of each layer's
// Hessian, which the quantizer takes as the importance of a column.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace quantd {

class InputStatistics {
  public:
    // One entry for each matrix: n_columns[i] columns.
    explicit InputStatistics(const std::vector<int64_t>& n_columns);

    // Adds the squares of rows [0, n_rows) of an input: row r starts at rows + r * stride.
    void add(std::size_t matrix, const float* rows, int64_t stride, int64_t n_rows) noexcept;

    const std::vector<double>& sum_of_squares(std::size_t matrix) const {
        return sums_.at(matrix);
    }  // (n_columns)
    int64_t n_rows(std::size_t matrix) const { return counts_.at(matrix); }
    int64_t size_bytes() const;

  private:
    std::vector<std::vector<double>> sums_;
    std::vector<int64_t> counts_;
};

}  // namespace quantd
