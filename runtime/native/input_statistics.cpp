#include "input_statistics.h"

namespace quantd {

InputStatistics::InputStatistics(const std::vector<int64_t>& n_columns) : counts_(n_columns.size(), 0) {
    sums_.reserve(n_columns.size());
    for (const int64_t n : n_columns) sums_.emplace_back(static_cast<std::size_t>(n), 0.0);
}

void InputStatistics::add(std::size_t matrix, const float* rows, int64_t stride, int64_t n_rows) noexcept {
    std::vector<double>& sums = sums_[matrix];
    for (int64_t row = 0; row < n_rows; ++row) {
        const float* x = rows + row * stride;
        for (std::size_t i = 0; i < sums.size(); ++i) {
            sums[i] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
        }
    }
    counts_[matrix] += n_rows;
}

int64_t InputStatistics::size_bytes() const {
    int64_t bytes = 0;
    for (const auto& sums : sums_) bytes += static_cast<int64_t>(sums.size() * sizeof(double));
    return bytes;
}

}  // namespace quantd
