// Byte-pair merging: the neighbours whose merge comes first become one, leftmost first, until no pair merges.
//
// Two ways to know a pair.  MergeTable: the file's list of merges, by the ids of the two tokens (byte-level
// BPE and its raw UTF-8 kin).  By text: SentencePiece's BPE has no list, its pairs are those whose joined
// text is a token, and the token's score says which comes first.
//
// Time is O(n log n) in the length of a word: a heap of pairs over a linked list.  Short words, which nearly
// all are, are scanned instead.  Memory is 32 bytes for each byte of the longest word, and words are cut at
// kMaxWordBytes.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "tokenizer/vocabulary.h"

namespace quantd {

// No published model has a token that comes near; a longer word without a place to cut is cut here.
constexpr uint32_t kMaxWordBytes = uint32_t{1} << 20;

// Pairs of tokens to what they become: open addressing over 16-byte slots, at most 5/8 full.
class MergeTable {
  public:
    struct Merge {
        uint32_t rank = UINT32_MAX;  // the place in the file's list; UINT32_MAX: the pair does not merge
        uint32_t id = kNoToken;
    };

    // Reads tokenizer.ggml.merges.  Throws ModelFormatError for an entry that does not join two tokens to a
    // token; entries that would make, or are made of, a control token are left out.
    explicit MergeTable(const Vocabulary& vocabulary);

    Merge find(uint32_t left, uint32_t right) const {
        size_t at = place(left, right);
        while (slots_[at].rank != UINT32_MAX) {
            const Slot& slot = slots_[at];
            if (slot.left == left && slot.right == right) return {slot.rank, slot.id};
            at = (at + 1) & mask_;
        }
        return {};
    }
    uint64_t size_bytes() const { return slots_.capacity() * sizeof(Slot); }

  private:
    struct Slot {
        uint32_t left = kNoToken;
        uint32_t right = kNoToken;
        uint32_t rank = UINT32_MAX;
        uint32_t id = kNoToken;
    };
    size_t place(uint32_t left, uint32_t right) const {
        const uint64_t key = (uint64_t{left} << 32 | right) ^ seed_;
        const auto product = static_cast<unsigned __int128>(key) * 0x9E3779B97F4A7C15;
        return static_cast<size_t>(product ^ (product >> 64)) & mask_;
    }
    void insert(uint32_t left, uint32_t right, uint32_t rank, uint32_t id);

    std::vector<Slot> slots_;
    size_t mask_ = 0;
    uint64_t seed_;
};

// Merges words to tokens; safe to use from several threads.
class Merger {
  public:
    // By the file's list of merges.  `ignore_merges`: a word that is a token is taken whole.  `unk_id` stands
    // for a byte without a token, kNoToken: it is dropped.
    Merger(const Vocabulary& vocabulary, std::unique_ptr<MergeTable> merges, bool ignore_merges,
           uint32_t unk_id);
    // By the tokens' scores (size), higher ones first; without merges.
    Merger(const Vocabulary& vocabulary, const std::vector<float>& scores, uint32_t unk_id);

    // Appends the tokens of a word of valid UTF-8, to be taken as it is.
    void encode(std::string_view word, std::vector<uint32_t>& ids) const;

    uint64_t size_bytes() const;

  private:
    struct Pair {
        uint32_t order = UINT32_MAX;  // smaller ones first; UINT32_MAX: does not merge
        uint32_t id = kNoToken;
    };
    struct Work;  // the arrays of a long word

    Pair find(uint32_t left, uint32_t right, std::string_view joined) const;
    void encode_short(std::string_view word, std::vector<uint32_t>& ids) const;
    void encode_long(std::string_view word, std::vector<uint32_t>& ids) const;
    // The symbol at the word's beginning: its length, and its token or kNoToken.
    uint32_t first_symbol(std::string_view word, uint32_t* id) const;
    void emit(uint32_t id, std::string_view text, std::vector<uint32_t>& ids) const;

    const Vocabulary& vocabulary_;
    std::unique_ptr<MergeTable> merges_;
    std::vector<uint32_t> orders_;  // (size) by token, from the scores; empty where merges_ says
    bool ignore_merges_ = false;
    bool has_bytes_;
    uint32_t unk_id_;
};

}  // namespace quantd
