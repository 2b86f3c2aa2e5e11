// Guesses of the next tokens of one sequence, read from its own text; runtime/speculation.py says what for.
//
// A Copier finds where the last tokens of a sequence stood before and reads on from there.  Its tables are
// bounded, and every token costs the same few operations: two entries, and at most sixteen comparisons where
// there is no guess.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace quantd {

class Copier {
  public:
    static constexpr int kMaxTableBits =
        16;  // of a table with 2^16 entries; newer positions replace older ones

    // Tables for a sequence of at most `limit` tokens have 2^table_bits(limit) entries of 4 bytes each.
    static int table_bits(int64_t limit) noexcept;
    static int64_t table_bytes(int64_t limit) noexcept;

    // `tokens` (limit): the sequence's own array, which outlives this object; the first `num_known` are
    // known. Throws std::invalid_argument where there are not so many, or bits lie outside of [1, 16].
    Copier(std::span<const int32_t> tokens, int64_t num_known, int bits);

    // The token at num_known() is known now.  Throws std::out_of_range where the array ends before it.
    void follow();

    // Fetches into the caches what follow() will need once `next` is the token at num_known(): between two
    // steps of a model nothing of it is there, and misses that overlap cost a fraction of misses one after
    // the other.
    void fetch(int32_t next) const noexcept;

    int64_t num_known() const { return num_known_; }
    // Whether there is a guess for the next token.
    bool has_guess() const { return at_ > 0; }
    // Appends, for each of the next guesses, at most `most`: the chance that it and all before it are right.
    void chances(int64_t most, std::vector<double>& out) const;
    // The next `most` guesses in order; none where has_guess() is false.  Text that repeats itself is read on
    // into them.
    std::vector<int32_t> draft(int64_t most) const;

    // For each length of an ending, by its hash: the position of the token that came after it last; 0: none.
    const std::array<std::vector<int32_t>, 2>& tables() const { return tables_; }

  private:
    static constexpr int kNumBuckets = 6;

    uint32_t token(int64_t at) const { return static_cast<uint32_t>(tokens_[static_cast<size_t>(at)]); }
    void enter_all(std::vector<int32_t>& table, int64_t n) const;
    void look_up() noexcept;
    void try_match(int64_t at, int64_t n) noexcept;

    std::span<const int32_t> tokens_;
    int64_t num_known_;
    int shift_;
    std::array<std::vector<int32_t>, 2> tables_;
    std::array<double, kNumBuckets> hits_;   // right guesses, by the bit length of the match before them
    std::array<double, kNumBuckets> tries_;  // guesses
    int64_t at_ = 0;                         // where the guess for the next token stands; 0: there is none
    int64_t length_ = 0;                     // tokens before it that are the same as the last ones
};

// A sequence of a step, which has one row anyway: who guesses (nullptr: it must not), and how many guesses it
// may have.
struct DraftCandidate {
    const Copier* copier;
    int64_t most;
};

// How many guesses of each candidate the next step should carry, at least 0.  step_ms[n]: what a step takes
// that has n rows more than there are candidates; step_ms.size() - 1 bounds the guesses of all.
//
// A longer step delays everybody in it, so what is maximized is the sum of the logarithms of all rates
// (proportional fairness): one sequence alone guesses where that is faster, and among many its gain has to
// outweigh their loss.
std::vector<int64_t> choose_drafts(std::span<const DraftCandidate> candidates,
                                   std::span<const double> step_ms);

}  // namespace quantd
