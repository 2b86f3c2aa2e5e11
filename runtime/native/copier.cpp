#include "copier.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

namespace quantd {
namespace {

constexpr std::array<int64_t, 2> kEndings{4, 2};  // lengths that are looked up, the longest first
constexpr uint32_t kFactor = 0x9E3779B1;          // 2^32 / golden ratio: spreads neighbouring ids
constexpr uint32_t kFactor2 = kFactor * kFactor;
constexpr uint32_t kFactor3 = kFactor2 * kFactor;
constexpr uint32_t kFactor4 = kFactor3 * kFactor;
constexpr int kMinTableBits = 8;
constexpr int64_t kLongest = 16;  // a match is not measured further
// The share of right guesses after a match of 2 to 3, 4 to 7, 8 to 15, 16 and more tokens, by the bit length
// of that; believed before any was seen as much as this many guesses; and after so many guesses, older ones
// count half.
constexpr std::array<double, 6> kPrior{0.0, 0.0, 0.15, 0.4, 0.6, 0.75};
constexpr double kPriorWeight = 4.0;
constexpr double kMemory = 64.0;
// What drafts must promise, as the logarithm of a rate, or the noise of the estimates would decide.
constexpr double kLeastGain = 0.05;

size_t bucket_of(int64_t length) {
    return static_cast<size_t>(std::bit_width(static_cast<uint64_t>(std::min(length, kLongest))));
}

}  // namespace

int Copier::table_bits(int64_t limit) noexcept {
    const auto width =
        static_cast<int>(std::bit_width(2 * static_cast<uint64_t>(std::max<int64_t>(limit, 0))));
    return std::clamp(width, kMinTableBits, kMaxTableBits);
}

int64_t Copier::table_bytes(int64_t limit) noexcept {
    return static_cast<int64_t>(kEndings.size() * sizeof(int32_t)) << table_bits(limit);
}

Copier::Copier(std::span<const int32_t> tokens, int64_t num_known, int bits)
    : tokens_(tokens), num_known_(num_known), shift_(32 - bits) {
    if (num_known < 0 || static_cast<uint64_t>(num_known) > tokens.size()) {
        throw std::invalid_argument("num_known must lie between 0 and the " + std::to_string(tokens.size()) +
                                    " tokens of the array, got " + std::to_string(num_known));
    }
    if (bits < 1 || bits > kMaxTableBits) {
        throw std::invalid_argument("a table has 1 to 16 bits, got " + std::to_string(bits));
    }
    for (size_t i = 0; i < tables_.size(); ++i) {
        tables_[i].assign(size_t{1} << bits, 0);
        enter_all(tables_[i], kEndings[i]);
    }
    for (size_t i = 0; i < kPrior.size(); ++i) {
        hits_[i] = kPriorWeight * kPrior[i];
        tries_[i] = kPriorWeight;
    }
    look_up();
}

// Every ending of `n` tokens but the last one, which look_up enters.
void Copier::enter_all(std::vector<int32_t>& table, int64_t n) const {
    for (int64_t end = n; end < num_known_; ++end) {
        uint32_t hash = 0;
        for (int64_t i = end - n; i < end; ++i) hash = (hash + token(i)) * kFactor;
        table[hash >> shift_] = static_cast<int32_t>(end);
    }
}

void Copier::follow() {
    if (static_cast<uint64_t>(num_known_) >= tokens_.size()) throw std::out_of_range("the sequence is full");
    if (at_ > 0) {
        const size_t bucket = bucket_of(length_);
        tries_[bucket] += 1.0;
        if (token(at_) == token(num_known_)) {
            hits_[bucket] += 1.0;
            ++at_;
            length_ = std::min(length_ + 1, kLongest);
        } else {
            at_ = 0;
        }
        if (tries_[bucket] > kMemory) {
            tries_[bucket] *= 0.5;
            hits_[bucket] *= 0.5;
        }
    }
    ++num_known_;
    look_up();
}

void Copier::fetch(int32_t next) const noexcept {
    if (num_known_ + 1 < kEndings[0]) return;
    const uint32_t short_hash = static_cast<uint32_t>(next) * kFactor + token(num_known_ - 1) * kFactor2;
    const uint32_t long_hash =
        short_hash + token(num_known_ - 2) * kFactor3 + token(num_known_ - 3) * kFactor4;
    __builtin_prefetch(&tables_[0][long_hash >> shift_], 1);
    __builtin_prefetch(&tables_[1][short_hash >> shift_], 1);
}

void Copier::chances(int64_t most, std::vector<double>& out) const {
    if (at_ == 0) return;
    double chance = 1.0;
    for (int64_t i = 0; i < most; ++i) {
        const size_t bucket = bucket_of(length_ + i);
        chance *= hits_[bucket] / tries_[bucket];
        out.push_back(chance);
    }
}

std::vector<int32_t> Copier::draft(int64_t most) const {
    std::vector<int32_t> drafts;
    if (at_ == 0) return drafts;
    for (int64_t at = at_; at < at_ + most; ++at) {
        drafts.push_back(at < num_known_ ? tokens_[static_cast<size_t>(at)]
                                         : drafts[static_cast<size_t>(at - num_known_)]);
    }
    return drafts;
}

// Enters the endings of the known text, and where there is no guess, looks where they stood before.
void Copier::look_up() noexcept {
    const int64_t known = num_known_;
    if (known < kEndings[0]) return;
    const uint32_t short_hash = token(known - 1) * kFactor + token(known - 2) * kFactor2;
    const uint32_t long_hash = short_hash + token(known - 3) * kFactor3 + token(known - 4) * kFactor4;
    const int64_t long_at = std::exchange(tables_[0][long_hash >> shift_], static_cast<int32_t>(known));
    const int64_t short_at = std::exchange(tables_[1][short_hash >> shift_], static_cast<int32_t>(known));
    if (at_ > 0) return;
    if (long_at > 0) try_match(long_at, kEndings[0]);
    if (short_at > 0 && at_ == 0) try_match(short_at, kEndings[1]);
}

// Reads on from `at` where at least `n` tokens before it are the same as the last ones, and not only their
// hash.
void Copier::try_match(int64_t at, int64_t n) noexcept {
    int64_t length = 0;
    while (length < kLongest && length < at && token(at - 1 - length) == token(num_known_ - 1 - length))
        ++length;
    if (length >= n) {
        at_ = at;
        length_ = length;
    }
}

std::vector<int64_t> choose_drafts(std::span<const DraftCandidate> candidates,
                                   std::span<const double> step_ms) {
    std::vector<int64_t> counts(candidates.size(), 0);
    std::vector<std::pair<double, size_t>> gains;
    std::vector<double> chances;
    for (size_t i = 0; i < candidates.size(); ++i) {
        if (candidates[i].copier == nullptr) continue;
        chances.clear();
        candidates[i].copier->chances(candidates[i].most, chances);
        double expected = 1.0;
        for (const double chance : chances) {
            gains.emplace_back(std::log1p(chance / expected), i);
            expected += chance;
        }
    }
    if (gains.empty() || step_ms.empty()) return counts;
    // Of one sequence, each guess gains at most as much as the one before.
    std::ranges::sort(gains, std::greater<>());
    const auto num_rows = static_cast<double>(candidates.size());
    double gained = 0.0, best = kLeastGain;
    size_t num_best = 0;
    for (size_t n = 1; n <= std::min(gains.size(), step_ms.size() - 1); ++n) {
        gained += gains[n - 1].first;
        const double value = gained - num_rows * std::log(step_ms[n] / step_ms[0]);
        if (value > best) {
            best = value;
            num_best = n;
        }
    }
    for (size_t n = 0; n < num_best; ++n) ++counts[gains[n].second];
    return counts;
}

}  // namespace quantd
