// The tokens of a model, as its file has them: texts stay in the mapped file, what is made from them is
// compact.
//
// Two texts matter for a token.  Its raw text is what the file says.  Its key is what input is compared with:
// for byte-level vocabularies the bytes that the raw text writes with printable characters, for others the
// raw text itself.
//
// Everything here comes from a file that is hostile until proven otherwise: counts and lengths are bounded
// before anything is allocated, hashes are seeded so that no crafted set of texts collides, and no token
// marked as control or unknown can come out of matching text.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gguf.h"

namespace quantd {

// Kinds of tokens as GGUF numbers them.
enum class TokenType : uint8_t { UNDEFINED, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE };

constexpr uint32_t kNoToken = UINT32_MAX;

// The largest published vocabularies have 262,144 tokens and 0.5 M merges, the longest tokens 256 bytes.
constexpr uint64_t kMaxTokens = uint64_t{1} << 20;
constexpr uint64_t kMaxMerges = uint64_t{4} << 20;
constexpr uint64_t kMaxTokenBytes = 1024;
constexpr uint64_t kMaxVocabularyBytes = uint64_t{16} << 20;
constexpr uint64_t kMaxSpecialBytes = 256;

// A fault of the tokenizer's metadata; `key` is what follows "tokenizer.ggml.".
ModelFormatError tokenizer_fault(const GgufFile& file, std::string code, const std::string& key,
                                 const std::string& message);

// The array tokenizer.ggml.<key>, checked to hold strings (or numbers); nullptr where it is absent and may
// be.
const KeyValue* find_array(const GgufFile& file, const std::string& key, bool strings, bool required);

// Keys to ids: open addressing, 4 bytes a slot, at most half full.  The owner has the keys.
class KeyHash {
  public:
    KeyHash();
    static uint64_t hash(std::string_view key, uint64_t seed);
    uint64_t hash(std::string_view key) const { return hash(key, seed_); }
    void reserve(uint32_t n_keys);
    uint64_t size_bytes() const { return slots_.capacity() * sizeof(uint32_t); }

    // The slot of a key: where it is, or where it would go.
    template <typename KeyOf>
    uint32_t& slot(std::string_view key, KeyOf&& key_of) {
        return slots_[place(key, key_of)];
    }
    template <typename KeyOf>
    uint32_t find(std::string_view key, KeyOf&& key_of) const {
        return slots_[place(key, key_of)];
    }

  private:
    template <typename KeyOf>
    size_t place(std::string_view key, KeyOf& key_of) const {
        size_t at = hash(key) & mask_;
        while (slots_[at] != kNoToken && key_of(slots_[at]) != key) at = (at + 1) & mask_;
        return at;
    }
    std::vector<uint32_t> slots_;  // (power of two) id or kNoToken
    size_t mask_ = 0;
    uint64_t seed_;
};

class Vocabulary {
  public:
    // Reads tokens and token_type.  `byte_level`: texts are written in the byte alphabet of GPT-2; else
    // matching works on whole characters.  Throws ModelFormatError that names the key.
    Vocabulary(std::shared_ptr<GgufFile> file, bool byte_level);

    uint32_t size() const { return static_cast<uint32_t>(text_offsets_.size()); }
    const GgufFile& file() const { return *file_; }
    bool byte_level() const { return byte_level_; }
    TokenType type(uint32_t id) const { return static_cast<TokenType>(types_[id]); }
    const std::string& types() const { return types_; }  // (size) TokenType

    // As the file has it; valid as long as this object.
    std::string_view text(uint32_t id) const { return {array_ + text_offsets_[id], text_lengths_[id]}; }
    std::string_view key(uint32_t id) const {
        return byte_level_ ? std::string_view(bytes_.data() + key_offsets_[id],
                                              key_offsets_[id + 1] - key_offsets_[id])
                           : text(id);
    }
    // The first token with this raw text, whatever its type; looks at all of them.
    uint32_t find_text(std::string_view text) const;

    // Whether matching text may give the token.
    bool matches(uint32_t id) const { return flags_[id] & kMatches; }
    // Whether the raw text is written in the byte alphabet throughout.
    bool in_alphabet(uint32_t id) const { return flags_[id] & kInAlphabet; }
    // Of the tokens that match, the one with this key; of several the last.
    uint32_t find(std::string_view key) const {
        if (key.size() > max_key_bytes_) return kNoToken;
        return hash_.find(key, [this](uint32_t id) { return this->key(id); });
    }
    uint32_t max_key_bytes() const { return max_key_bytes_; }  // of the tokens that match

    // The token for one byte: of a byte-level vocabulary, or one written "<0x41>"; kNoToken where there is
    // none.
    uint32_t byte_token(uint8_t byte) const { return byte_tokens_[byte]; }
    uint32_t num_byte_tokens() const;  // 256: every text has tokens

    // False where no token that matches has `left` as the last byte of one character and `right` as the first
    // byte of the next: text may be cut there, and the pieces' tokens are the whole's.
    bool joins(char left, char right) const {
        const auto pair = static_cast<size_t>(static_cast<uint8_t>(left)) << 8 | static_cast<uint8_t>(right);
        return joins_[pair >> 6] >> (pair & 63) & 1;
    }

    uint64_t size_bytes() const;

    // Turns byte-alphabet text into bytes; false where a character is not of the alphabet.
    static bool from_alphabet(std::string_view text, std::string& out);
    // The byte that a text such as "<0x0A>" stands for, or -1.
    static int byte_of_text(std::string_view text);

  private:
    static constexpr uint8_t kMatches = 1;
    static constexpr uint8_t kInAlphabet = 2;

    void read_types();
    void read_byte_tokens();
    void index();

    std::shared_ptr<GgufFile> file_;
    const KeyValue* tokens_ = nullptr;
    bool byte_level_;
    // The raw texts lie in the mapping, which may change under us but not shrink: lengths are kept and not
    // read again.
    const char* array_ = nullptr;
    std::vector<uint32_t> text_offsets_;  // (size) from array_
    std::vector<uint16_t> text_lengths_;  // (size)
    std::string types_;                   // (size)
    std::vector<uint8_t> flags_;          // (size)
    std::string bytes_;                   // keys of a byte-level vocabulary, one behind the other
    std::vector<uint32_t> key_offsets_;   // (size + 1) in bytes_, empty for others
    KeyHash hash_;
    uint32_t max_key_bytes_ = 0;
    std::vector<uint32_t> byte_tokens_;  // (256)
    std::vector<uint64_t> joins_;        // (1024) a bit for each pair of bytes
};

// Texts in order, for finding the longest that a text begins with.
class PrefixIndex {
  public:
    struct Match {
        uint32_t id = kNoToken;
        uint32_t length = 0;
    };

    // Of the tokens of `ids`, by their raw texts (none empty); of equal ones the last counts.
    PrefixIndex(const Vocabulary& vocabulary, std::vector<uint32_t> ids);

    bool empty() const { return ids_.empty(); }
    bool may_begin(char byte) const {
        const auto at = static_cast<uint8_t>(byte);
        return first_[at + 1u] > first_[at];
    }
    // The longest token at the beginning of `text`.
    Match longest(const Vocabulary& vocabulary, std::string_view text) const;
    // Calls visit(id, length) for each token that `text` begins with, shorter ones first.
    template <typename Visit>
    void each(const Vocabulary& vocabulary, std::string_view text, Visit&& visit) const {
        walk(vocabulary, {}, text, visit);
    }
    // The same for the text `before` + `text`; lengths do without `before`, and tokens within it are not
    // visited.
    template <typename Visit>
    void each_after(const Vocabulary& vocabulary, std::string_view before, std::string_view text,
                    Visit&& visit) const {
        walk(vocabulary, before, text, visit);
    }
    // Whether `text` is the beginning of a longer token.
    bool begins_longer(const Vocabulary& vocabulary, std::string_view text) const;
    uint64_t size_bytes() const { return ids_.capacity() * sizeof(uint32_t) + sizeof(first_); }

  private:
    // Narrows [*low, *high) to the texts that have `byte` at `depth`; false if none has.
    bool narrow(const Vocabulary& vocabulary, size_t depth, char byte, uint32_t* low, uint32_t* high) const;

    template <typename Visit>
    void walk(const Vocabulary& vocabulary, std::string_view before, std::string_view text,
              Visit& visit) const {
        auto low = uint32_t{0};
        auto high = static_cast<uint32_t>(ids_.size());
        const size_t total = before.size() + text.size();
        for (size_t depth = 0; depth < total; ++depth) {
            const char byte = depth < before.size() ? before[depth] : text[depth - before.size()];
            if (!narrow(vocabulary, depth, byte, &low, &high)) return;
            if (depth >= before.size() && vocabulary.text(ids_[low]).size() == depth + 1) {
                visit(ids_[low], static_cast<uint32_t>(depth + 1 - before.size()));
            }
        }
    }

    std::vector<uint32_t> ids_;  // by raw text, bytewise; no two equal
    uint32_t first_[257] = {};   // where texts that begin with a byte begin
};

}  // namespace quantd
