#include "input_statistics.h"

namespace quantd {

InputStatistics::InputStatistics(const std::vector<Shape>& tensors) {
    tensors_.reserve(tensors.size());
    for (const Shape& shape : tensors) {
        const auto n = static_cast<std::size_t>(shape.n_matrices);
        tensors_.push_back({shape, std::vector<double>(n * static_cast<std::size_t>(shape.n_columns), 0.0),
                            std::vector<int64_t>(n, 0)});
    }
}

void InputStatistics::add(std::size_t tensor, int64_t matrix, const float* rows, int64_t stride,
                          int64_t n_rows) noexcept {
    Tensor& to = tensors_[tensor];
    double* sums = to.sums.data() + matrix * to.shape.n_columns;
    for (int64_t row = 0; row < n_rows; ++row) {
        const float* x = rows + row * stride;
        for (int64_t i = 0; i < to.shape.n_columns; ++i) {
            sums[i] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
        }
    }
    to.n_rows[static_cast<std::size_t>(matrix)] += n_rows;
}

int64_t InputStatistics::size_bytes() const {
    int64_t bytes = 0;
    for (const Tensor& each : tensors_) bytes += static_cast<int64_t>(each.sums.size() * sizeof(double));
    return bytes;
}

}  // namespace quantd
