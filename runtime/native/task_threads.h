// Tasks for threads that are made for them: work of the quantizer, beside the pool that steps run on.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "float_mode.h"

namespace quantd {

// body(task) for every task, handed out in order, on n_threads threads of which the caller is one.
template <typename Body>
void on_threads(int64_t n_tasks, int n_threads, const Body& body) {
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        const DefaultFloatMode float_mode;
        for (int64_t task = next.fetch_add(1); task < n_tasks; task = next.fetch_add(1)) body(task);
    };
    std::vector<std::jthread> helpers;
    const auto n_helpers = std::clamp<int64_t>(n_threads, 1, std::max<int64_t>(n_tasks, 1)) - 1;
    helpers.reserve(static_cast<size_t>(n_helpers));
    for (int64_t i = 0; i < n_helpers; ++i) helpers.emplace_back(work);
    work();
}

}  // namespace quantd
