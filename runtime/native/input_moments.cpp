#include "input_moments.h"

#include <algorithm>

#include "kernels/feedback/feedback.h"

namespace quantd {

namespace {
constexpr int64_t kStripe = 32;  // rows of a run's matrix that one piece of work fills
}

InputMoments::InputMoments(size_t n_matrices, const std::vector<Group>& groups) : places_(n_matrices) {
    for (const Group& group : groups) {
        if (group.n_columns % 32 != 0) continue;
        const int64_t n_runs = (group.n_columns + kColumns - 1) / kColumns;
        bool adds = true;
        for (const size_t matrix : group.matrices) {
            if (places_.at(matrix).first_run >= 0)
                continue;  // a matrix that is used twice: its first input counts
            places_[matrix] = {n_runs_, n_runs, adds};
            adds = false;
        }
        if (!adds) n_runs_ += n_runs;
    }
}

void InputMoments::add(size_t matrix, int64_t n_columns, const float* rows, int64_t stride, int64_t n_rows,
                       ThreadPool& pool) noexcept {
    const Place& place = places_[matrix];
    if (!place.adds || sums_ == nullptr) return;
    const feedback::Functions& functions = feedback::functions_for(nullptr);
    constexpr int64_t kStripes = kColumns / kStripe;
    pool.parallel_for(place.n_runs * kStripes, 1, [&](int, int64_t begin, int64_t end) noexcept {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t run = task / kStripes, first = task % kStripes * kStripe;
            const int64_t n = std::min(kColumns, n_columns - run * kColumns);
            if (first >= n) continue;  // a narrow last run
            functions.add_products(rows + run * kColumns, stride, n_rows, n, first,
                                   std::min(first + kStripe, n),
                                   sums_ + (place.first_run + run) * kColumns * kColumns);
        }
    });
}

}  // namespace quantd
