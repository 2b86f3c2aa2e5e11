#include "progress.h"

#include <algorithm>
#include <stdexcept>

namespace quantd {

void Progress::append(int32_t token) {
    if (num_known < 0 || static_cast<size_t>(num_known) >= tokens.size()) {
        throw std::out_of_range("the sequence has no room for another token");
    }
    tokens[static_cast<size_t>(num_known)] = token;
    ++num_known;
    ++completion_tokens;
    if (copier != nullptr) copier->follow();
}

bool Progress::stops_at(int32_t token) const noexcept {
    return std::binary_search(stop_ids.begin(), stop_ids.end(), token);
}

int64_t count_ready(std::span<const Progress* const> running) noexcept {
    return std::ranges::count_if(
        running, [](const Progress* each) { return each->num_known == int64_t{each->num_computed} + 1; });
}

Renewed renew_rows(std::span<const Progress* const> running, std::span<int32_t> tokens,
                   std::span<int32_t> positions) noexcept {
    if (running.size() > std::min(tokens.size(), positions.size())) return Renewed::kNo;
    bool some_guess = false;
    for (size_t row = 0; row < running.size(); ++row) {
        const Progress& each = *running[row];
        const int32_t at = each.num_computed;
        const bool is_same = each.num_known == int64_t{at} + 1 && at < each.paged_tokens &&
                             each.num_drafted == 0 && static_cast<uint64_t>(at) < each.tokens.size();
        if (!is_same) return Renewed::kNo;
        tokens[row] = each.tokens[static_cast<size_t>(at)];
        positions[row] = at;
        some_guess = some_guess || (each.copier != nullptr && each.copier->has_guess());
    }
    return some_guess ? Renewed::kWithGuess : Renewed::kYes;
}

void advance_all(std::span<Progress* const> sequences, std::span<const int32_t> token_ids,
                 std::span<uint8_t> left) {
    if (token_ids.size() < sequences.size() || left.size() < sequences.size()) {
        throw std::logic_error("a step gave fewer tokens than it has sequences");
    }
    for (const Progress* each : sequences) {
        if (!each->is_running) throw std::logic_error("a request that does not run was in a step");
    }
    for (size_t i = 0; i < sequences.size(); ++i) {
        if (sequences[i]->copier != nullptr) sequences[i]->copier->fetch(token_ids[i]);
    }
    for (size_t i = 0; i < sequences.size(); ++i) {
        Progress& each = *sequences[i];
        const int32_t token = token_ids[i];
        each.num_computed = each.num_known;
        left[i] = 0;
        if (each.publishes && each.num_computed / each.page_tokens != each.num_published)
            left[i] |= kPageFull;
        if (token < 0 || !each.is_plain || each.num_known + int64_t{1} >= each.limit_tokens ||
            each.stops_at(token)) {
            left[i] |= kUntaken;
        } else {
            each.append(token);
        }
    }
}

}  // namespace quantd
