// Choosing a token from one row of logits, and the log-probabilities that callers ask for.
//
// Order of the transforms, as llama.cpp's default chain: logit bias, penalties, mask, top-k, top-p, min-p,
// temperature, draw.  Neither bias nor penalties bring back a token that the mask excludes.  A draw depends
// on (seed, how many tokens this sampler has drawn) and the logits, on nothing else: the same request gives
// the same text whatever else is in the batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace quantd {

constexpr int32_t kMaxTopLogprobs = 20;
constexpr int32_t kMaxRepeatLastN = 1 << 16;
constexpr size_t kMaxLogitBiases = 1 << 16;
constexpr size_t kMaxMaskWords = 1 << 20;  // 4 MiB: 64 masks of a vocabulary of 2^19

struct SamplerSettings {
    float temperature = 0.8F;     // 0: the best token, ties to the lowest id
    int32_t top_k = 40;           // 0: off
    float top_p = 0.95F;          // 1: off
    float min_p = 0.05F;          // 0: off
    float repeat_penalty = 1.0F;  // 1: off
    int32_t repeat_last_n =
        64;  // tokens that the penalties look back on, prompt included; -1: as many as kept
    float presence_penalty = 0.0F;
    float frequency_penalty = 0.0F;
    std::vector<std::pair<int32_t, float>> logit_bias;  // ids outside the vocabulary are ignored
    uint64_t seed = 0;
    int32_t top_logprobs =
        -1;  // -1: no log-probabilities at all; 0: of the drawn token; n: and of the n best
};

// Working memory of one thread, taken once.
struct SamplerScratch {
    explicit SamplerScratch(int64_t n_vocab);
    static int64_t bytes(int64_t n_vocab);

    std::vector<float> values;        // (n_vocab) logits after bias and penalties
    std::vector<int32_t> candidates;  // (n_vocab) ids still in the race
    std::vector<double> weights;      // (n_vocab) unnormalized probabilities of the candidates
    std::vector<int32_t> counts;      // (n_vocab) how often a token occurs in the window; zero between calls
};

// Why a row has no token, if it should have one.  The numbers are those of runtime.step_plan.
enum class Outcome : uint8_t {
    Fine = 0,       // drawn, or nothing was to be drawn
    NonFinite = 1,  // a logit was a NaN or an infinity: nothing was drawn
    NoToken = 2,    // the mask allows no token: nothing was drawn
};

// What one row of logits gave.  Log-probabilities are those of the raw logits; NaN where nobody asked.
struct RowScore {
    int32_t token = -1;                   // drawn token, or -1
    float logprob;                        // of the drawn token
    float target_logprob;                 // of the wanted token
    int32_t top_ids[kMaxTopLogprobs];     // best first, ties to the lowest id; -1 behind the wanted number
    float top_logprobs[kMaxTopLogprobs];  // NaN behind the wanted number
    Outcome outcome = Outcome::Fine;
};

class Sampler {
  public:
    // Throws std::invalid_argument naming the setting that is out of its range.
    explicit Sampler(SamplerSettings settings);

    // Feeds the window of the penalties: the prompt once, or tokens forced from outside.
    void accept(int32_t token) noexcept;

    // Tokens that may be drawn, one bit each, token t at bit t % 32 of word t / 32.  words (n_masks, n_words)
    // is copied.  sticky: the one mask holds for every draw until the next call; otherwise mask i is for the
    // i-th draw from now, and draws behind the last one find no token allowed.  Empty words: every token.
    // Throws std::invalid_argument above kMaxMaskWords or where the words are not n_masks whole masks.
    void set_mask(std::span<const uint32_t> words, size_t n_masks, bool sticky);

    // Whether the masks, if there are any, are made for a vocabulary of this size.
    bool mask_fits(int64_t n_vocab) const noexcept;

    // Draws the next token from logits (n_vocab), which must be finite, and accepts it.  -1, and nothing
    // accepted, where the mask allows no token.
    int32_t sample(const float* logits, int64_t n_vocab, SamplerScratch& scratch) noexcept;

    const SamplerSettings& settings() const { return settings_; }
    uint64_t n_drawn() const { return n_drawn_; }

  private:
    bool changes_logits() const noexcept;
    bool apply_mask(float* values, int64_t n_vocab) const noexcept;
    void apply_bias_and_penalties(float* values, int64_t n_vocab, int32_t* counts) const noexcept;
    int32_t draw(const float* values, int64_t n_vocab, SamplerScratch& scratch) const noexcept;

    SamplerSettings settings_;
    std::vector<int32_t> window_;  // (repeat_last_n) ring of the last tokens; empty without penalties
    uint64_t n_accepted_ = 0;
    uint64_t n_drawn_ = 0;
    std::vector<uint32_t> masks_;  // (masks, mask_words_) allowed tokens; empty: all
    size_t mask_words_ = 0;        // words of one mask
    size_t mask_next_ = 0;         // mask of the next draw
    bool mask_sticky_ = false;
};

// The score of a row that nobody looked at: token -1, outcome Fine, log-probabilities NaN.
RowScore empty_score() noexcept;

// Checks one row for non-finite values, takes the log-probabilities that were asked for and draws.
// sampler may be nullptr (score only), target -1 (none wanted).
RowScore score_row(const float* logits, int64_t n_vocab, Sampler* sampler, int32_t target,
                   SamplerScratch& scratch) noexcept;

}  // namespace quantd
