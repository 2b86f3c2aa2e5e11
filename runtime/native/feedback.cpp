#include "feedback.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>
#include <string_view>

#include "block_levels.h"
#include "kernels.h"
#include "kernels/encode/encode.h"
#include "kernels/feedback/feedback.h"
#include "task_threads.h"

namespace quantd {
namespace feedback {

const Functions& functions_for(const char* level) {
    [[maybe_unused]] const std::string_view name = kernels_for(level).level;
#if defined(__x86_64__)
    if (name == encode::kAvx512Vnni.level) return kAvx512Vnni;
    if (name != encode::kScalar.level) return kAvx2;  // the other levels all have AVX2
#endif
    return kScalar;
}

}  // namespace feedback

namespace {

using feedback::kColumns;
using feedback::kRows;

// Added to the diagonal, as a share of its mean: columns that the text hardly used stay near their weights.
constexpr double kDamping = 0.01;
// Off the diagonal moments shrink by n_seen / (n_seen + kPriorInputs): estimated from few inputs they are too
// large.
constexpr double kPriorInputs = 1000.0;

// Row k of `lower` (n, n), columns up to k, becomes that of L where matrix = L^T L: from the last row up, so
// that L^T is the upper triangular factor of the columns in their order.
void factorize(std::vector<double>& lower, size_t n) {
    for (size_t k = n; k-- > 0;) {
        double* row = lower.data() + k * n;
        const double pivot = std::sqrt(row[k]);
        const double inverse = 1.0 / pivot;
        row[k] = pivot;
        for (size_t j = 0; j < k; ++j) row[j] *= inverse;
        for (size_t j = 0; j < k; ++j) {
            double* other = lower.data() + j * n;
            const double factor = row[j];
            for (size_t i = 0; i <= j; ++i) other[i] -= factor * row[i];
        }
    }
}

// moments (256, 256): those of one run.
FeedbackFactors::Run factors_of(const float* moments, size_t n, int64_t n_seen) {
    constexpr auto width = static_cast<size_t>(kColumns);
    FeedbackFactors::Run run;
    double mean = 0;
    bool is_finite = true;
    for (size_t j = 0; j < n; ++j) {
        for (size_t k = j; k < n; ++k) is_finite = is_finite && std::isfinite(moments[j * width + k]);
        mean += static_cast<double>(moments[j * width + j]);
    }
    mean /= static_cast<double>(n);
    if (!is_finite || !(mean > 0)) return run;
    run.is_usable = true;
    run.order.resize(n);
    std::iota(run.order.begin(), run.order.end(), uint8_t{0});
    const auto diagonal = [&](size_t column) { return moments[column * width + column]; };
    std::ranges::stable_sort(run.order, [&](uint8_t a, uint8_t b) { return diagonal(a) > diagonal(b); });
    const auto seen = static_cast<double>(n_seen);
    const double keep = seen / (seen + kPriorInputs);
    std::vector<double> lower(n * n);
    run.moments.assign(width * width, 0.0f);
    run.inverse_diagonal.assign(width, 0.0f);
    for (size_t j = 0; j < n; ++j) {
        for (size_t k = 0; k <= j; ++k) {
            const size_t a = run.order[j], b = run.order[k];
            double value = static_cast<double>(moments[std::min(a, b) * width + std::max(a, b)]) / mean;
            value = j == k ? value + kDamping : value * keep;
            lower[j * n + k] = value;
            run.moments[j * width + k] = run.moments[k * width + j] = static_cast<float>(value);
        }
        run.inverse_diagonal[j] = 1.0f / run.moments[j * width + j];
    }
    factorize(lower, n);
    run.feedback.assign(width * width, 0.0f);
    run.pivots.assign(width, 0.0f);
    for (size_t k = 0; k < n; ++k) {
        const double pivot = lower[k * n + k];
        run.pivots[k] = static_cast<float>(pivot * pivot);
        for (size_t j = 0; j < k; ++j) {
            run.feedback[j * width + k] = static_cast<float>(lower[k * n + j] / pivot);
        }
    }
    return run;
}

// The columns of one run of n_rows rows, at most kRows, from first_row on.
void choose_rows(const QuantizeRows& job, const FeedbackFactors::Run& factors, int64_t first_column,
                 int64_t first_row, int64_t n_rows, encode::LoadFn load,
                 const feedback::Functions& functions) {
    const auto n = static_cast<int64_t>(factors.order.size());
    const TypeTraits& source = type_traits(job.source_type);
    const TypeTraits& target = type_traits(job.target_type);
    const LevelKind kind = level_kind(job.target_type);
    // One row; all of them, columns in the order of choosing.  Rows that are missing are zeros.
    float row_x[kColumns], row_step[kColumns], row_offset[kColumns];
    uint8_t row_q[kColumns];
    alignas(64) float x[kColumns * kRows] = {}, step[kColumns * kRows] = {}, offset[kColumns * kRows] = {};
    uint8_t q[kColumns * kRows] = {};
    const auto each_block = [&](int64_t row, const auto& body) {
        const int64_t at = (first_row + row) * job.n_cols + first_column;
        uint8_t* blocks = job.out + at / target.block_elements * target.block_bytes;
        for (int64_t i = 0; i < n; i += target.block_elements, blocks += target.block_bytes) body(blocks, i);
    };
    for (int64_t row = 0; row < n_rows; ++row) {
        load(job.source + ((first_row + row) * job.n_cols + first_column) * source.block_bytes, row_x, n);
        each_block(row, [&](const uint8_t* block, int64_t i) {
            read_levels(job.target_type, block, row_q + i, row_step + i, row_offset + i);
        });
        for (int64_t i = 0; i < n; ++i) {
            const uint8_t column = factors.order[static_cast<size_t>(i)];
            const int64_t at = i * kRows + row;
            x[at] = row_x[column];
            step[at] = row_step[column];
            offset[at] = row_offset[column];
            q[at] = row_q[column];
        }
    }
    functions.choose({n, x, step, offset, kind.book, kind.n_levels, factors.moments.data(),
                      factors.inverse_diagonal.data(), factors.feedback.data(), factors.pivots.data(), q});
    for (int64_t row = 0; row < n_rows; ++row) {
        for (int64_t i = 0; i < n; ++i) row_q[factors.order[static_cast<size_t>(i)]] = q[i * kRows + row];
        each_block(row, [&](uint8_t* block, int64_t i) { write_levels(job.target_type, row_q + i, block); });
    }
}

}  // namespace

FeedbackFactors::FeedbackFactors(const float* moments, int64_t n_cols, int64_t n_seen, int n_threads)
    : n_cols_(n_cols) {
    if (n_cols < 1 || n_cols % 32 != 0 || n_seen < 1) {
        throw std::invalid_argument("columns must be a multiple of 32, of at least one input");
    }
    runs_.resize(static_cast<size_t>((n_cols + kColumns - 1) / kColumns));
    on_threads(static_cast<int64_t>(runs_.size()), n_threads, [&](int64_t run) {
        const auto n = static_cast<size_t>(std::min(kColumns, n_cols - run * kColumns));
        runs_[static_cast<size_t>(run)] = factors_of(moments + run * kColumns * kColumns, n, n_seen);
    });
}

void feed_back(const QuantizeRows& job, const FeedbackFactors& factors) {
    const encode::Encoders& encoders = encode::encoders_for(job.level);
    const feedback::Functions& functions = feedback::functions_for(job.level);
    const encode::LoadFn load = encode::loader_of(encoders, job.source_type);
    if (level_kind(job.target_type).n_levels == 0) {
        throw std::invalid_argument(std::string("no levels to choose in type ") +
                                    type_traits(job.target_type).name);
    }
    if (factors.n_cols() != job.n_cols)
        throw std::invalid_argument("the factors are of rows of another length");
    const int64_t row_tasks = (job.n_rows + kRows - 1) / kRows;
    // All rows of a run one after the other: its matrices stay in the cache.
    on_threads(static_cast<int64_t>(factors.runs().size()) * row_tasks, job.n_threads, [&](int64_t task) {
        const int64_t run = task / row_tasks, first_row = task % row_tasks * kRows;
        const FeedbackFactors::Run& of_run = factors.runs()[static_cast<size_t>(run)];
        if (!of_run.is_usable) return;
        choose_rows(job, of_run, run * kColumns, first_row, std::min(kRows, job.n_rows - first_row), load,
                    functions);
    });
}

}  // namespace quantd
