// What the inputs of the matrices look like while a text runs through a program: the diagonal of each layer's
// Hessian, which the quantizer takes as the importance of a column.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace quantd {

class InputStatistics {
  public:
    // Of one tensor: the matrices that lie in it, one but for experts, which have the same columns.
    struct Shape {
        int64_t n_matrices;
        int64_t n_columns;
    };
    explicit InputStatistics(const std::vector<Shape>& tensors);

    // Adds the squares of rows [0, n_rows) of the input of one matrix: row r starts at rows + r * stride.
    void add(std::size_t tensor, int64_t matrix, const float* rows, int64_t stride, int64_t n_rows) noexcept;

    const Shape& shape(std::size_t tensor) const { return tensors_.at(tensor).shape; }
    const std::vector<double>& sums_of_squares(std::size_t tensor) const {
        return tensors_.at(tensor).sums;
    }  // (n_matrices, n_columns)
    const std::vector<int64_t>& n_rows(std::size_t tensor) const {
        return tensors_.at(tensor).n_rows;
    }  // (n_matrices)
    int64_t size_bytes() const;

  private:
    struct Tensor {
        Shape shape;
        std::vector<double> sums;
        std::vector<int64_t> n_rows;
    };
    std::vector<Tensor> tensors_;
};

}  // namespace quantd
