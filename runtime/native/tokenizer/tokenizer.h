// Text to tokens and back, for every kind of vocabulary that GGUF has; built from a file's metadata,
// read-only afterwards.
//
// Text is bytes of valid UTF-8 here.  Texts of special tokens are found first (leftmost, then longest); what
// lies between goes through the model: byte-level or raw BPE, SentencePiece's BPE, unigram, or WordPiece.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/merge.h"
#include "tokenizer/pattern.h"
#include "tokenizer/unigram.h"
#include "tokenizer/vocabulary.h"
#include "tokenizer/word_piece.h"

namespace quantd {

enum class TokenizerKind : uint8_t { BPE, SENTENCEPIECE, UNIGRAM, WORD_PIECE };

struct TokenizerOptions {
    TokenizerKind kind = TokenizerKind::BPE;
    bool byte_level = true;       // BPE: texts in the byte alphabet; else raw UTF-8 with U+2581 for spaces
    bool ignore_merges = false;   // BPE: a word that is a token is taken whole
    bool space_prefix = false;    // a space goes in front of plain text (never for byte-level BPE)
    bool squeeze_spaces = false;  // unigram: spaces at the ends and repeated ones are dropped
    uint32_t unk_id = kNoToken;
    std::vector<std::string> patterns = {};  // BPE: how text is cut into words
};

// Which special tokens are found in a text.
enum class Specials : uint8_t { NONE, USER_DEFINED, ALL };

class Tokenizer {
  public:
    struct Found {
        size_t begin;
        size_t end;
        uint32_t id;
    };

    // Throws ModelFormatError that names the key, PatternError for a bad pattern.
    Tokenizer(std::shared_ptr<GgufFile> file, TokenizerOptions options);
    Tokenizer(const Tokenizer&) = delete;  // its parts refer to its vocabulary
    Tokenizer& operator=(const Tokenizer&) = delete;

    const Vocabulary& vocabulary() const { return vocabulary_; }

    // Appends the tokens of valid UTF-8.  `prefix` false: the text goes on where it is, no space goes in
    // front. `mark`, if not empty, was put in by break_special: it is left out, and no control token begins
    // behind it.
    void encode(std::string_view text, Specials specials, bool prefix, std::string_view mark,
                std::vector<uint32_t>& ids) const;

    // Where special tokens are, from left to right, under the rules of encode.
    std::vector<Found> find_specials(std::string_view text, Specials specials, std::string_view mark) const;

    // Puts `mark` before every place where the text of a control token begins, whole or cut off by the end of
    // the text (or by the spaces there): whatever follows, encode with that mark takes it as text.
    std::string break_special(std::string_view text, std::string_view mark) const;

    // The bytes that a token adds to a text; none for control, unknown and unused tokens.
    std::string token_bytes(uint32_t id) const;

    // Tokens marked as control or user-defined, in order.
    std::vector<uint32_t> special_ids() const;

    uint64_t size_bytes() const;

  private:
    void encode_plain(std::string_view text, bool prefix, std::string_view mark,
                      std::vector<uint32_t>& ids) const;
    void encode_words(std::string_view text, std::vector<uint32_t>& ids) const;
    // `text` without marks, normalized as the kind does it.
    std::string prepare(std::string_view text, bool prefix, std::string_view mark) const;
    PrefixIndex index_specials(bool control, bool user_defined) const;

    TokenizerOptions options_;
    Vocabulary vocabulary_;
    PrefixIndex all_;
    PrefixIndex control_;
    PrefixIndex user_defined_;
    Splitter splitter_;
    CharsMap charsmap_;
    std::unique_ptr<Merger> merger_;
    std::unique_ptr<Unigram> unigram_;
    std::unique_ptr<WordPiece> word_piece_;
};

}  // namespace quantd
