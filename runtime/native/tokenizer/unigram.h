// SentencePiece's unigram model: of all ways to cut a text into tokens, the one whose scores add up to the
// most.
//
// The best cut of each beginning of the text is found from shorter beginnings (Viterbi), so time grows with
// the text times the longest token.  Memory is 16 bytes for each byte of the longest piece, and pieces are
// cut at kMaxWordBytes.
//
// Source: Kudo, "Subword Regularization" (2018), section 3.2.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/vocabulary.h"

namespace quantd {

class Unigram {
  public:
    // scores (size of the vocabulary); characters of no token become unk_id, neighbouring ones one token.
    Unigram(const Vocabulary& vocabulary, std::vector<float> scores, uint32_t unk_id);

    // Appends the tokens of valid UTF-8.
    void encode(std::string_view text, std::vector<uint32_t>& ids) const;

    uint64_t size_bytes() const { return index_.size_bytes() + scores_.capacity() * sizeof(float); }

  private:
    void encode_piece(std::string_view piece, std::vector<uint32_t>& ids) const;

    const Vocabulary& vocabulary_;
    std::vector<float> scores_;  // (size)
    PrefixIndex index_;
    double unk_score_;
    uint32_t unk_id_;
};

// The table by which SentencePiece normalizes text: the longest of its sources that the text goes on with is
// replaced.
//
//   table = u32 size in bytes of the trie, trie (u32 units of a double array), replacements (each ends with a
//   zero byte)
//
// Source: the format of Darts double arrays (https://github.com/s-yata/darts-clone), units as described
// there.
class CharsMap {
  public:
    CharsMap() = default;
    // Throws std::invalid_argument for a table that breaks the format.
    explicit CharsMap(std::string table);

    bool empty() const { return table_.empty(); }
    // Appends the normalized text; `text` is valid UTF-8, and so is what is appended.
    void normalize(std::string_view text, std::string& out) const;
    uint64_t size_bytes() const { return table_.capacity(); }

  private:
    uint32_t unit(uint32_t at) const;
    // The length of the longest source at the beginning of `text`, 0 if there is none, and where its
    // replacement lies.
    uint32_t longest(std::string_view text, uint32_t* replacement) const;

    std::string table_;
    uint32_t n_units_ = 0;
};

}  // namespace quantd
