// How far a sequence is, and what a step of answers alone does to it.
//
// Nearly all steps give one token to each of the same sequences as the step before.  What the scheduler does
// for them is the same few lines for each, between two steps, while every thread waits: here it is two calls
// for all of them.  Everything else (prompts, drafts, constraints, the ends of sequences) is the scheduler's,
// in Python, on the same fields.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "copier.h"

namespace quantd {

// The fields of runtime.request.Sequence that every token changes.
//
// tokens  [0 ........ num_computed)[num_computed ........ num_known)[num_known ........ limit_tokens)
//         keys and values in pages  wanted: the next rows            not sampled yet
struct Progress {
    std::span<int32_t> tokens;  // (limit_tokens) once the sequence has a session; the prompt before
    int32_t num_known = 0;
    int32_t num_computed = 0;
    int32_t limit_tokens = 0;
    int32_t num_drafted = 0;        // guesses in the scheduled step; they stand in tokens[num_known:]
    int32_t completion_tokens = 0;  // sampled, or forced by a constraint
    int32_t page_tokens = 1;
    int32_t num_published = 0;       // full pages that others may find
    int32_t paged_tokens = 0;        // tokens that its pages in the last plan have room for
    std::vector<int32_t> stop_ids;   // ascending: tokens that end it
    std::shared_ptr<Copier> copier;  // guesses its next tokens; null: not made yet, or never
    bool is_plain = true;     // its tokens are told without log-probabilities, and only the model says which
    bool publishes = false;   // its full pages are offered to others
    bool is_running = false;  // it holds a session

    // Adds a token that the next step has to compute.  Throws std::out_of_range where there is no room.
    void append(int32_t token);
    bool stops_at(int32_t token) const noexcept;
};

// Sequences whose only wanted token is the last known one.
int64_t count_ready(std::span<const Progress* const> running) noexcept;

enum class Renewed : uint8_t {
    kNo = 0,         // the step differs from the last one by more than its tokens
    kYes = 1,        // it does not, and nobody has a guess
    kWithGuess = 2,  // it does not, but somebody has a guess for the token after it
};

// Where each of the sequences of the last step, which had one row for each of them, wants one row again and
// has room for it: writes their tokens and positions (both (n_sequences)).  kNo, with nothing to be relied on
// in the arrays, where one does not, or needs another page.
Renewed renew_rows(std::span<const Progress* const> running, std::span<int32_t> tokens,
                   std::span<int32_t> positions) noexcept;

// What is left to do for a sequence after advance_all, as bits.
enum Left : uint8_t {
    kPageFull = 1,  // the row completed a page that is to be published
    kUntaken =
        2,  // the token was not added: there is none, it ends the sequence, or the sequence is not plain
};

// Takes in one computed row, and the token that it gave (-1: none), for each sequence of such a step; left
// (n_sequences). Throws std::logic_error, before anything is changed, where a sequence does not run, and
// std::out_of_range for no room.
void advance_all(std::span<Progress* const> sequences, std::span<const int32_t> token_ids,
                 std::span<uint8_t> left);

}  // namespace quantd
