// WordPiece, as bert cuts text: words at spaces and punctuation, then from the left the longest token each
// time. Normalizing (accents, case) comes before and is not done here.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "tokenizer/vocabulary.h"

namespace quantd {

class WordPiece {
  public:
    // GGUF marks tokens that begin a word with U+2581.  A word that tokens cannot make up is unk_id.
    WordPiece(const Vocabulary& vocabulary, uint32_t unk_id);

    // Appends the tokens of valid UTF-8.  Control characters are left out; spaces, punctuation and Chinese
    // characters end words, the latter two as words of one character.
    void encode(std::string_view text, std::vector<uint32_t>& ids) const;

    uint64_t size_bytes() const { return index_.size_bytes(); }

  private:
    void encode_word(std::string_view word, std::vector<uint32_t>& ids) const;

    const Vocabulary& vocabulary_;
    PrefixIndex index_;
    uint32_t unk_id_;
};

}  // namespace quantd
