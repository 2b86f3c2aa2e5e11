#include "tokenizer/word_piece.h"

#include <string>

#include "tokenizer/unicode.h"

namespace quantd {
namespace {

constexpr std::string_view kWordBegin = "\xE2\x96\x81";

std::vector<uint32_t> matching_ids(const Vocabulary& vocabulary) {
    std::vector<uint32_t> ids;
    for (uint32_t id = 0; id < vocabulary.size(); ++id) {
        if (vocabulary.matches(id) && vocabulary.text(id) != kWordBegin) ids.push_back(id);
    }
    return ids;
}

// The ranges that bert's own tokenizer calls Chinese (with its slip: 2B920 for 2B820).
bool is_chinese(uint32_t code) {
    return (code >= 0x4E00 && code <= 0x9FFF) || (code >= 0x3400 && code <= 0x4DBF) ||
           (code >= 0x20000 && code <= 0x2A6DF) || (code >= 0x2A700 && code <= 0x2B73F) ||
           (code >= 0x2B740 && code <= 0x2B81F) || (code >= 0x2B920 && code <= 0x2CEAF) ||
           (code >= 0xF900 && code <= 0xFAFF) || (code >= 0x2F800 && code <= 0x2FA1F);
}

bool is_punctuation(uint32_t code) {
    static const uint32_t mask = unicode::category_mask("P");
    if (code < 0x80) {
        return (code >= 0x21 && code <= 0x2F) || (code >= 0x3A && code <= 0x40) ||
               (code >= 0x5B && code <= 0x60) || (code >= 0x7B && code <= 0x7E);
    }
    return (unicode::category_bit(code) & mask) != 0;
}

// What is left out: control characters, formats, unassigned and private ones, and U+FFFD.
bool is_dropped(uint32_t code) {
    static const uint32_t mask = unicode::category_mask("C");
    return code == 0xFFFD || (unicode::category_bit(code) & mask) != 0;
}

}  // namespace

WordPiece::WordPiece(const Vocabulary& vocabulary, uint32_t unk_id)
    : vocabulary_(vocabulary), index_(vocabulary, matching_ids(vocabulary)), unk_id_(unk_id) {}

void WordPiece::encode(std::string_view text, std::vector<uint32_t>& ids) const {
    std::string word;
    auto finish = [&] {
        if (!word.empty()) encode_word(word, ids);
        word.clear();
    };
    while (!text.empty()) {
        const auto [code, length] = unicode::decode(text.data());
        const bool dropped = is_dropped(code);
        if (code == '\t' || code == '\n' || code == '\r' || (!dropped && unicode::is_space(code))) {
            finish();
        } else if (!dropped) {
            const bool alone = is_punctuation(code) || is_chinese(code);
            if (alone) finish();
            word += text.substr(0, length);
            if (alone) finish();
        }
        text.remove_prefix(length);
    }
    finish();
}

void WordPiece::encode_word(std::string_view word, std::vector<uint32_t>& ids) const {
    const size_t first = ids.size();
    std::string_view before = kWordBegin;
    while (!word.empty()) {
        PrefixIndex::Match found;
        auto longest = [&](uint32_t id, uint32_t length) { found = {id, length}; };
        // In the middle of a word the mark of beginnings is a character that no token has.
        const bool lost = before.empty() && word.substr(0, kWordBegin.size()) == kWordBegin;
        if (!lost) index_.each_after(vocabulary_, before, word, longest);
        if (found.id == kNoToken) {
            ids.resize(first);
            ids.push_back(unk_id_);
            return;
        }
        ids.push_back(found.id);
        word.remove_prefix(found.length);
        before = {};
    }
}

}  // namespace quantd
