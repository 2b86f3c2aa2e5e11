#include "tokenizer/merge.h"

#include <algorithm>
#include <bit>
#include <random>
#include <string>

#include "tokenizer/unicode.h"

namespace quantd {
namespace {

constexpr uint32_t kShortSymbols = 48;
constexpr uint32_t kNone = UINT32_MAX;

// Smaller for higher scores; never UINT32_MAX for a finite score.
uint32_t order_of(float score) {
    const auto bits = std::bit_cast<uint32_t>(score == 0.0F ? 0.0F : score);
    const uint32_t rising = bits & 0x80000000 ? ~bits : bits | 0x80000000;
    return ~rising;
}

}  // namespace

MergeTable::MergeTable(const Vocabulary& vocabulary) {
    std::random_device device;
    seed_ = uint64_t{device()} << 32 | device();
    const GgufFile& file = vocabulary.file();
    const KeyValue* merges = find_array(file, "merges", true, true);
    if (merges->count > kMaxMerges) {
        throw tokenizer_fault(
            file, "TOO_MANY_ENTRIES", "merges",
            std::to_string(merges->count) + " entries; the limit is " + std::to_string(kMaxMerges));
    }
    size_t size = 16;
    while (size * 5 < merges->count * 8) size *= 2;
    slots_.resize(size);
    mask_ = size - 1;

    // Raw texts of the tokens that matching never gives; filled at the first merge that needs them.
    KeyHash silent;
    bool has_silent = false;
    auto text_of = [&](uint32_t id) { return vocabulary.text(id); };
    auto is_silent = [&](std::string_view text) {
        if (!has_silent) {
            silent.reserve(vocabulary.size());
            for (uint32_t id = 0; id < vocabulary.size(); ++id) {
                if (!vocabulary.matches(id)) silent.slot(vocabulary.text(id), text_of) = id;
            }
            has_silent = true;
        }
        return silent.find(text, text_of) != kNoToken;
    };
    uint32_t rank = 0;
    std::string left_key;
    std::string joined_key;
    std::string joined_text;
    file.for_each_string(*merges, merges->count, [&](std::string_view text) {
        const uint32_t own_rank = rank++;
        auto fail = [&] {
            return tokenizer_fault(
                file, "BAD_MERGE", "merges",
                "entry " + std::to_string(own_rank) + " does not join two tokens to a token");
        };
        const size_t space = text.find(' ', 1);
        if (space == std::string_view::npos || text.size() > 2 * kMaxTokenBytes) throw fail();
        const std::string_view left_text = text.substr(0, space);
        const std::string_view right_text = text.substr(space + 1);
        joined_key.clear();
        bool known = true;
        size_t left_size = left_text.size();
        if (vocabulary.byte_level()) {
            known = Vocabulary::from_alphabet(left_text, joined_key);
            left_size = joined_key.size();
            known = known && Vocabulary::from_alphabet(right_text, joined_key);
        } else {
            joined_key.append(left_text).append(right_text);
        }
        const std::string_view key = joined_key;
        const uint32_t left = known ? vocabulary.find(key.substr(0, left_size)) : kNoToken;
        const uint32_t right = known ? vocabulary.find(key.substr(left_size)) : kNoToken;
        const uint32_t joined = known ? vocabulary.find(key) : kNoToken;
        if (left != kNoToken && right != kNoToken && joined != kNoToken) {
            insert(left, right, own_rank, joined);
            return;
        }
        joined_text.assign(left_text).append(right_text);
        auto is_token = [&](uint32_t id, std::string_view raw) { return id != kNoToken || is_silent(raw); };
        if (!is_token(left, left_text) || !is_token(right, right_text) || !is_token(joined, joined_text))
            throw fail();
    });
    file.check_unchanged(*merges);
}

void MergeTable::insert(uint32_t left, uint32_t right, uint32_t rank, uint32_t id) {
    size_t at = place(left, right);
    while (slots_[at].rank != UINT32_MAX) {
        if (slots_[at].left == left && slots_[at].right == right) return;  // the first one counts
        at = (at + 1) & mask_;
    }
    slots_[at] = {left, right, rank, id};
}

Merger::Merger(const Vocabulary& vocabulary, std::unique_ptr<MergeTable> merges, bool ignore_merges,
               uint32_t unk_id)
    : vocabulary_(vocabulary),
      merges_(std::move(merges)),
      ignore_merges_(ignore_merges),
      has_bytes_(vocabulary.num_byte_tokens() == 256),
      unk_id_(unk_id) {}

Merger::Merger(const Vocabulary& vocabulary, const std::vector<float>& scores, uint32_t unk_id)
    : vocabulary_(vocabulary), has_bytes_(vocabulary.num_byte_tokens() == 256), unk_id_(unk_id) {
    orders_.reserve(scores.size());
    for (float score : scores) orders_.push_back(order_of(score));
}

uint64_t Merger::size_bytes() const {
    return (merges_ ? merges_->size_bytes() : 0) + orders_.capacity() * sizeof(uint32_t);
}

Merger::Pair Merger::find(uint32_t left, uint32_t right, std::string_view joined) const {
    if (merges_) {
        if (left == kNoToken || right == kNoToken) return {};
        const MergeTable::Merge merge = merges_->find(left, right);
        return {merge.rank, merge.id};
    }
    const uint32_t id = vocabulary_.find(joined);
    return id == kNoToken ? Pair{} : Pair{orders_[id], id};
}

uint32_t Merger::first_symbol(std::string_view word, uint32_t* id) const {
    if (vocabulary_.byte_level()) {
        *id = vocabulary_.byte_token(static_cast<uint8_t>(word[0]));
        return 1;
    }
    const uint32_t length = unicode::length_of(word[0]);
    *id = vocabulary_.find(word.substr(0, length));
    return length;
}

void Merger::emit(uint32_t id, std::string_view text, std::vector<uint32_t>& ids) const {
    if (id != kNoToken) {
        ids.push_back(id);
        return;
    }
    if (!vocabulary_.byte_level() && has_bytes_) {
        for (char byte : text) ids.push_back(vocabulary_.byte_token(static_cast<uint8_t>(byte)));
    } else if (unk_id_ != kNoToken) {
        ids.push_back(unk_id_);
    }
}

void Merger::encode(std::string_view word, std::vector<uint32_t>& ids) const {
    while (word.size() > kMaxWordBytes) {
        size_t cut = kMaxWordBytes;
        while (unicode::is_continuation(word[cut])) --cut;
        encode(word.substr(0, cut), ids);
        word.remove_prefix(cut);
    }
    if (word.empty()) return;
    if (ignore_merges_) {
        const uint32_t id = vocabulary_.find(word);
        if (id != kNoToken) {
            ids.push_back(id);
            return;
        }
    }
    if (word.size() <= kShortSymbols) {
        encode_short(word, ids);
    } else {
        encode_long(word, ids);
    }
}

void Merger::encode_short(std::string_view word, std::vector<uint32_t>& ids) const {
    uint32_t begins[kShortSymbols + 1];
    uint32_t tokens[kShortSymbols];
    Pair pairs[kShortSymbols];  // of a symbol and the next one
    uint32_t n = 0;
    for (uint32_t at = 0; at < word.size(); ++n) {
        begins[n] = at;
        at += first_symbol(word.substr(at), &tokens[n]);
    }
    begins[n] = static_cast<uint32_t>(word.size());
    auto pair_at = [&](uint32_t i) {
        return find(tokens[i], tokens[i + 1], word.substr(begins[i], begins[i + 2] - begins[i]));
    };
    for (uint32_t i = 0; i + 1 < n; ++i) pairs[i] = pair_at(i);
    while (n > 1) {
        uint32_t best = 0;
        for (uint32_t i = 1; i + 1 < n; ++i) {
            if (pairs[i].order < pairs[best].order) best = i;
        }
        if (pairs[best].order == UINT32_MAX) break;
        tokens[best] = pairs[best].id;
        for (uint32_t i = best + 1; i + 1 < n; ++i) {
            tokens[i] = tokens[i + 1];
            begins[i] = begins[i + 1];
            pairs[i] = pairs[i + 1];
        }
        begins[--n] = static_cast<uint32_t>(word.size());
        if (best > 0) pairs[best - 1] = pair_at(best - 1);
        if (best + 1 < n) pairs[best] = pair_at(best);
    }
    for (uint32_t i = 0; i < n; ++i) emit(tokens[i], word.substr(begins[i], begins[i + 1] - begins[i]), ids);
}

struct Merger::Work {
    std::vector<uint32_t> begins;  // (n + 1) of each symbol in the word
    std::vector<uint32_t> ids;     // (n) token of a symbol, kNoToken where it has none
    std::vector<uint32_t> next;    // (n) symbol behind; n behind the last
    std::vector<uint32_t> before;  // (n) kNone before the first
    std::vector<uint32_t>
        orders;  // (n) of the pair with the next symbol, UINT32_MAX: does not merge, or merged away
    std::vector<uint64_t>
        heap;  // order << 32 | symbol, smallest first; entries whose order has changed are stale
};

void Merger::encode_long(std::string_view word, std::vector<uint32_t>& ids) const {
    Work work;
    for (uint32_t at = 0; at < word.size();) {
        uint32_t id = kNoToken;
        work.begins.push_back(at);
        at += first_symbol(word.substr(at), &id);
        work.ids.push_back(id);
    }
    const auto n = static_cast<uint32_t>(work.ids.size());
    work.begins.push_back(static_cast<uint32_t>(word.size()));
    work.next.resize(n);
    work.before.resize(n);
    work.orders.assign(n, UINT32_MAX);
    // Stale entries are thrown out when the heap is full, which half of its size must have been pushed for.
    const size_t max_heap = size_t{n} + n / 2 + 16;
    work.heap.reserve(max_heap);
    const auto later = std::greater<>();

    auto pair_at = [&](uint32_t i) {
        const uint32_t right = work.next[i];
        if (right == n) return Pair{};
        const uint32_t end =
            work.next[right] == n ? static_cast<uint32_t>(word.size()) : work.begins[work.next[right]];
        return find(work.ids[i], work.ids[right], word.substr(work.begins[i], end - work.begins[i]));
    };
    auto entry = [&](uint32_t i) { return uint64_t{work.orders[i]} << 32 | i; };
    auto rebuild = [&] {
        work.heap.clear();
        for (uint32_t i = 0; i < n; ++i) {
            if (work.orders[i] != UINT32_MAX) work.heap.push_back(entry(i));
        }
        std::make_heap(work.heap.begin(), work.heap.end(), later);
    };
    auto look = [&](uint32_t i) {
        work.orders[i] = pair_at(i).order;
        if (work.orders[i] == UINT32_MAX) return;
        if (work.heap.size() == max_heap) {
            rebuild();
            return;
        }
        work.heap.push_back(entry(i));
        std::push_heap(work.heap.begin(), work.heap.end(), later);
    };

    for (uint32_t i = 0; i < n; ++i) {
        work.next[i] = i + 1;
        work.before[i] = i == 0 ? kNone : i - 1;
    }
    for (uint32_t i = 0; i < n; ++i) work.orders[i] = pair_at(i).order;
    rebuild();
    while (!work.heap.empty()) {
        const uint64_t top = work.heap.front();
        std::pop_heap(work.heap.begin(), work.heap.end(), later);
        work.heap.pop_back();
        const auto left = static_cast<uint32_t>(top);
        if (work.orders[left] != top >> 32) continue;
        const uint32_t right = work.next[left];
        work.ids[left] = pair_at(left).id;
        work.orders[right] = UINT32_MAX;
        work.next[left] = work.next[right];
        if (work.next[left] != n) work.before[work.next[left]] = left;
        look(left);
        if (work.before[left] != kNone) look(work.before[left]);
    }
    for (uint32_t i = 0; i != n; i = work.next[i]) {
        const uint32_t end =
            work.next[i] == n ? static_cast<uint32_t>(word.size()) : work.begins[work.next[i]];
        emit(work.ids[i], word.substr(work.begins[i], end - work.begins[i]), ids);
    }
}

}  // namespace quantd
