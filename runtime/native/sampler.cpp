#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>

namespace quantd {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
// Bias and penalties may push a logit far, but never to infinity: later differences stay finite.
constexpr float kLargestLogit = 1e30F;

void require(bool good, const char* name, const char* range) {
    if (!good) throw std::invalid_argument(std::string(name) + " must be " + range);
}

void check(const SamplerSettings& s) {
    // Written so that NaN fails each of them.
    require(s.temperature >= 0 && s.temperature <= 100, "temperature", "between 0 and 100");
    require(s.top_k >= 0, "top_k", "0 (off) or more");
    require(s.top_p > 0 && s.top_p <= 1, "top_p", "above 0 and at most 1");
    require(s.min_p >= 0 && s.min_p <= 1, "min_p", "between 0 and 1");
    require(s.repeat_penalty > 0 && s.repeat_penalty <= 100, "repeat_penalty", "above 0 and at most 100");
    require(s.repeat_last_n >= -1 && s.repeat_last_n <= kMaxRepeatLastN, "repeat_last_n",
            "between -1 (all) and 65536");
    require(std::fabs(s.presence_penalty) <= 100, "presence_penalty", "between -100 and 100");
    require(std::fabs(s.frequency_penalty) <= 100, "frequency_penalty", "between -100 and 100");
    require(s.top_logprobs >= -1 && s.top_logprobs <= kMaxTopLogprobs, "top_logprobs",
            "between -1 (none) and 20");
    require(s.logit_bias.size() <= kMaxLogitBiases, "logit_bias", "a list of at most 65536 entries");
    for (const auto& [token, bias] : s.logit_bias) {
        require(std::fabs(bias) <= 1e6F, "logit_bias", "made of values between -1e6 and 1e6");
    }
}

// splitmix64: one well-mixed word for each counter value (Steele, Lea, Flood 2014).
uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

// Uniform in [0, 1) with 53 bits, a function of (seed, index) only.
double uniform(uint64_t seed, uint64_t index) {
    return static_cast<double>(mix(mix(seed) ^ mix(index)) >> 11) * 0x1.0p-53;
}

// Best value first, ties to the lowest id: the order of every choice in this file.
struct Better {
    const float* values;
    bool operator()(int32_t a, int32_t b) const {
        return values[a] > values[b] || (values[a] == values[b] && a < b);
    }
};

int32_t arg_max(const float* values, int64_t n) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; ++i) {
        if (values[i] > values[best]) best = i;
    }
    return static_cast<int32_t>(best);
}

bool all_finite(const float* x, int64_t n) {
    int bad = 0;
    for (int64_t i = 0; i < n; ++i) bad |= !(std::fabs(x[i]) <= std::numeric_limits<float>::max());
    return bad == 0;
}

double log_sum_exp(const float* x, int64_t n) {
    const double largest = x[arg_max(x, n)];
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += std::exp(static_cast<double>(x[i]) - largest);
    return largest + std::log(sum);
}

// The k best of all n, best first, into out (capacity n).  One pass: candidates gather until 2k are there,
// then the worse half goes and its best value becomes the bar for the rest.
int64_t best_of_all(const float* values, int64_t n, int64_t k, int32_t* out) {
    const Better better{values};
    int64_t count = 0;
    if (2 * k >= n) {
        for (; count < n; ++count) out[count] = static_cast<int32_t>(count);
    } else {
        float bar = -std::numeric_limits<float>::infinity();
        for (int64_t i = 0; i < n; ++i) {
            if (values[i] <= bar) continue;  // equal to the bar: the kept ones have lower ids
            out[count++] = static_cast<int32_t>(i);
            if (count == 2 * k) {
                std::nth_element(out, out + k - 1, out + count, better);
                count = k;
                bar = values[out[k - 1]];
            }
        }
    }
    const int64_t kept = std::min(k, count);
    std::partial_sort(out, out + kept, out + count, better);
    return kept;
}

// Shortest best-first prefix of candidates whose share of the total weight reaches top_p.  Sorts in growing
// blocks, so the usual peaked distribution never sorts the whole vocabulary.
int64_t apply_top_p(const float* values, int32_t* candidates, int64_t count, bool sorted, float top_p) {
    const Better better{values};
    if (!sorted) {  // bring the best to the front
        std::iter_swap(candidates, std::min_element(candidates, candidates + count, better));
    }
    const double largest = values[candidates[0]];
    const auto weight = [&](int64_t i) {
        return std::exp(static_cast<double>(values[candidates[i]]) - largest);
    };
    double total = 0;
    for (int64_t i = 0; i < count; ++i) total += weight(i);

    double cumulative = 0;
    int64_t ready = sorted ? count : 0;  // [0, ready) is in final order
    for (int64_t i = 0; i < count; ++i) {
        if (i == ready) {
            const int64_t next = std::min(count, std::max<int64_t>(64, ready * 4));
            std::nth_element(candidates + ready, candidates + next - 1, candidates + count, better);
            std::sort(candidates + ready, candidates + next, better);
            ready = next;
        }
        cumulative += weight(i);
        if (cumulative >= static_cast<double>(top_p) * total) return i + 1;
    }
    return count;
}

int64_t apply_min_p(const float* values, int32_t* candidates, int64_t count, float min_p) {
    float largest = values[candidates[0]];
    for (int64_t i = 1; i < count; ++i) largest = std::max(largest, values[candidates[i]]);
    const float bar = largest + std::log(min_p);
    int64_t kept = 0;  // std::stable_partition would allocate
    for (int64_t i = 0; i < count; ++i) {
        if (values[candidates[i]] >= bar) candidates[kept++] = candidates[i];
    }
    return kept;
}

}  // namespace

SamplerScratch::SamplerScratch(int64_t n_vocab)
    : values(static_cast<size_t>(n_vocab)),
      candidates(static_cast<size_t>(n_vocab)),
      weights(static_cast<size_t>(n_vocab)),
      counts(static_cast<size_t>(n_vocab)) {}

int64_t SamplerScratch::bytes(int64_t n_vocab) {
    return n_vocab * static_cast<int64_t>(sizeof(float) + sizeof(int32_t) + sizeof(double) + sizeof(int32_t));
}

Sampler::Sampler(SamplerSettings settings) : settings_(std::move(settings)) {
    check(settings_);
    const int32_t window = settings_.repeat_last_n == -1 ? kMaxRepeatLastN : settings_.repeat_last_n;
    const bool penalties =
        settings_.repeat_penalty != 1 || settings_.presence_penalty != 0 || settings_.frequency_penalty != 0;
    window_.resize(penalties ? static_cast<size_t>(window) : 0, -1);
}

void Sampler::accept(int32_t token) noexcept {
    if (!window_.empty()) window_[n_accepted_ % window_.size()] = token;
    ++n_accepted_;
}

void Sampler::set_mask(std::span<const uint32_t> words, size_t n_masks, bool sticky) {
    require(words.size() <= kMaxMaskWords, "mask", "at most 1048576 words (uint32) in all");
    require(words.empty() || (n_masks > 0 && words.size() % n_masks == 0), "mask", "made of whole masks");
    masks_.assign(words.begin(), words.end());
    mask_words_ = words.empty() ? 0 : words.size() / n_masks;
    mask_next_ = 0;
    mask_sticky_ = sticky;
}

bool Sampler::mask_fits(int64_t n_vocab) const noexcept {
    return masks_.empty() || static_cast<int64_t>(mask_words_) == (n_vocab + 31) / 32;
}

// Takes the tokens that the mask of this draw excludes out of the race; false where it leaves none.
bool Sampler::apply_mask(float* values, int64_t n_vocab) const noexcept {
    const size_t first = mask_next_ * mask_words_;
    if (first >= masks_.size()) return false;
    uint32_t any = 0;
    for (int64_t begin = 0; begin < n_vocab; begin += 32) {
        const int64_t count = std::min<int64_t>(32, n_vocab - begin);
        const uint32_t real = count == 32 ? ~uint32_t{0} : (uint32_t{1} << count) - 1;
        const uint32_t allowed = masks_[first + static_cast<size_t>(begin / 32)] & real;
        any |= allowed;
        if (allowed == real) continue;
        for (int64_t i = 0; i < count; ++i) {
            if ((allowed >> i & 1U) == 0) values[begin + i] = -std::numeric_limits<float>::infinity();
        }
    }
    return any != 0;
}

bool Sampler::changes_logits() const noexcept {
    return !window_.empty() || !settings_.logit_bias.empty() || !masks_.empty();
}

void Sampler::apply_bias_and_penalties(float* values, int64_t n_vocab, int32_t* counts) const noexcept {
    const auto bounded = [](float x) { return std::clamp(x, -kLargestLogit, kLargestLogit); };
    const auto known = [n_vocab](int32_t token) { return token >= 0 && token < n_vocab; };
    for (const auto& [token, bias] : settings_.logit_bias) {
        if (known(token)) values[token] = bounded(values[token] + bias);
    }
    const auto seen = std::span(window_).first(std::min<size_t>(window_.size(), n_accepted_));
    for (const int32_t token : seen) {
        if (known(token)) ++counts[token];
    }
    for (const int32_t token : seen) {
        if (!known(token) || counts[token] == 0) continue;  // done at its first occurrence
        float value = values[token];
        value = value > 0 ? value / settings_.repeat_penalty : value * settings_.repeat_penalty;
        value -= static_cast<float>(counts[token]) * settings_.frequency_penalty + settings_.presence_penalty;
        values[token] = bounded(value);
        counts[token] = 0;
    }
}

int32_t Sampler::draw(const float* values, int64_t n_vocab, SamplerScratch& scratch) const noexcept {
    if (settings_.temperature == 0) return arg_max(values, n_vocab);
    int32_t* candidates = scratch.candidates.data();
    int64_t count = n_vocab;
    const bool sorted = settings_.top_k > 0;
    if (sorted) {
        count = best_of_all(values, n_vocab, std::min<int64_t>(settings_.top_k, n_vocab), candidates);
    } else {
        for (int64_t i = 0; i < n_vocab; ++i) candidates[i] = static_cast<int32_t>(i);
    }
    if (settings_.top_p < 1) count = apply_top_p(values, candidates, count, sorted, settings_.top_p);
    if (settings_.min_p > 0) count = apply_min_p(values, candidates, count, settings_.min_p);

    double* weights = scratch.weights.data();
    float largest = values[candidates[0]];
    for (int64_t i = 1; i < count; ++i) largest = std::max(largest, values[candidates[i]]);
    double total = 0;
    for (int64_t i = 0; i < count; ++i) {
        const double gap = static_cast<double>(values[candidates[i]]) - static_cast<double>(largest);
        weights[i] = gap == 0 ? 1.0 : std::exp(gap / static_cast<double>(settings_.temperature));
        total += weights[i];
    }
    double left = uniform(settings_.seed, n_drawn_) * total;
    int32_t token = candidates[0];
    for (int64_t i = 0; i < count && left >= 0; ++i) {
        if (weights[i] == 0) continue;  // rounding at the end of the sum never picks the impossible
        token = candidates[i];
        left -= weights[i];
    }
    return token;
}

int32_t Sampler::sample(const float* logits, int64_t n_vocab, SamplerScratch& scratch) noexcept {
    const float* values = logits;
    if (changes_logits()) {
        std::copy(logits, logits + n_vocab, scratch.values.begin());
        apply_bias_and_penalties(scratch.values.data(), n_vocab, scratch.counts.data());
        if (!masks_.empty() && !apply_mask(scratch.values.data(), n_vocab)) return -1;
        values = scratch.values.data();
    }
    const int32_t token = draw(values, n_vocab, scratch);
    ++n_drawn_;
    if (!mask_sticky_) ++mask_next_;
    accept(token);
    return token;
}

RowScore empty_score() noexcept {
    RowScore score;
    score.logprob = score.target_logprob = kNan;
    std::fill(std::begin(score.top_ids), std::end(score.top_ids), -1);
    std::fill(std::begin(score.top_logprobs), std::end(score.top_logprobs), kNan);
    return score;
}

RowScore score_row(const float* logits, int64_t n_vocab, Sampler* sampler, int32_t target,
                   SamplerScratch& scratch) noexcept {
    RowScore score = empty_score();
    if (!all_finite(logits, n_vocab)) {
        score.outcome = Outcome::NonFinite;
        return score;
    }

    const int32_t top = sampler == nullptr ? -1 : sampler->settings().top_logprobs;
    const double log_total = top >= 0 || target >= 0 ? log_sum_exp(logits, n_vocab) : 0;
    const auto logprob = [&](int32_t id) {
        return static_cast<float>(static_cast<double>(logits[id]) - log_total);
    };
    if (target >= 0) score.target_logprob = logprob(target);
    if (top > 0) {
        const int64_t count =
            best_of_all(logits, n_vocab, std::min<int64_t>(top, n_vocab), scratch.candidates.data());
        for (int64_t i = 0; i < count; ++i) {
            score.top_ids[i] = scratch.candidates[static_cast<size_t>(i)];
            score.top_logprobs[i] = logprob(score.top_ids[i]);
        }
    }
    if (sampler != nullptr) {
        score.token = sampler->sample(logits, n_vocab, scratch);
        if (score.token < 0) score.outcome = Outcome::NoToken;
        if (top >= 0 && score.token >= 0) score.logprob = logprob(score.token);
    }
    return score;
}

}  // namespace quantd
