#include "tokenizer/unigram.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "tokenizer/merge.h"
#include "tokenizer/unicode.h"

namespace quantd {
namespace {

constexpr double kUnknownPenalty = 10.0;

bool is_usable(TokenType type) {
    return type == TokenType::UNDEFINED || type == TokenType::NORMAL || type == TokenType::USER_DEFINED;
}

std::vector<uint32_t> usable_ids(const Vocabulary& vocabulary) {
    std::vector<uint32_t> ids;
    for (uint32_t id = 0; id < vocabulary.size(); ++id) {
        if (vocabulary.matches(id) && is_usable(vocabulary.type(id))) ids.push_back(id);
    }
    return ids;
}

}  // namespace

Unigram::Unigram(const Vocabulary& vocabulary, std::vector<float> scores, uint32_t unk_id)
    : vocabulary_(vocabulary),
      scores_(std::move(scores)),
      index_(vocabulary, usable_ids(vocabulary)),
      unk_id_(unk_id) {
    float least = std::numeric_limits<float>::max();
    for (uint32_t id = 0; id < vocabulary.size(); ++id) {
        if (vocabulary.type(id) == TokenType::NORMAL) least = std::min(least, scores_[id]);
    }
    unk_score_ = (least == std::numeric_limits<float>::max() ? 0.0 : double{least}) - kUnknownPenalty;
}

void Unigram::encode(std::string_view text, std::vector<uint32_t>& ids) const {
    const size_t first_id = ids.size();
    size_t begin = 0;
    for (size_t at = 0; at < text.size();) {
        at += unicode::length_of(text[at]);
        const bool cuts = at == text.size() || !vocabulary_.joins(text[at - 1], text[at]) ||
                          (at - begin >= kMaxWordBytes - 4);
        if (!cuts) continue;
        encode_piece(text.substr(begin, at - begin), ids);
        begin = at;
    }
    // Unknown characters side by side are one token.
    auto kept = ids.begin() + static_cast<ptrdiff_t>(first_id);
    for (auto one = kept; one != ids.end(); ++one) {
        const bool again = *one == unk_id_ && kept != ids.begin() + static_cast<ptrdiff_t>(first_id) &&
                           *(kept - 1) == unk_id_;
        if (!again) *kept++ = *one;
    }
    ids.erase(kept, ids.end());
}

void Unigram::encode_piece(std::string_view piece, std::vector<uint32_t>& ids) const {
    struct Best {
        double score = -std::numeric_limits<double>::infinity();
        uint32_t id = kNoToken;
        uint32_t begin = 0;
    };
    std::vector<Best> best(piece.size() + 1);  // of what ends before a byte
    best[0].score = 0.0;
    for (uint32_t at = 0; at < piece.size(); at += unicode::length_of(piece[at])) {
        const double so_far = best[at].score;
        auto offer = [&](uint32_t id, uint32_t length, double score) {
            Best& other = best[at + length];
            if (so_far + score > other.score || other.id == kNoToken) other = {so_far + score, id, at};
        };
        const uint32_t length = unicode::length_of(piece[at]);
        bool whole = false;  // a token is this character
        index_.each(vocabulary_, piece.substr(at), [&](uint32_t id, uint32_t token_length) {
            whole |= token_length == length;
            offer(id, token_length, scores_[id]);
        });
        if (!whole) offer(unk_id_, length, unk_score_);
    }
    const size_t first = ids.size();
    for (auto at = static_cast<uint32_t>(piece.size()); at > 0; at = best[at].begin)
        ids.push_back(best[at].id);
    std::reverse(ids.begin() + static_cast<ptrdiff_t>(first), ids.end());
}

CharsMap::CharsMap(std::string table) : table_(std::move(table)) {
    uint32_t trie_bytes = 0;
    if (table_.size() < sizeof(trie_bytes)) throw std::invalid_argument("it is too short");
    std::memcpy(&trie_bytes, table_.data(), sizeof(trie_bytes));
    if (trie_bytes % sizeof(uint32_t) != 0 || trie_bytes == 0 ||
        trie_bytes > table_.size() - sizeof(trie_bytes)) {
        throw std::invalid_argument("its trie is of " + std::to_string(trie_bytes) + " bytes");
    }
    n_units_ = trie_bytes / sizeof(uint32_t);
    const std::string_view replacements = std::string_view(table_).substr(sizeof(trie_bytes) + trie_bytes);
    if (!replacements.empty() && replacements.back() != '\0') {
        throw std::invalid_argument("its last replacement has no end");
    }
    if (!unicode::is_utf8(replacements)) throw std::invalid_argument("its replacements are no UTF-8");
}

uint32_t CharsMap::unit(uint32_t at) const {
    uint32_t value = 0;
    std::memcpy(&value, table_.data() + sizeof(uint32_t) + size_t{at} * sizeof(uint32_t), sizeof(value));
    return value;
}

uint32_t CharsMap::longest(std::string_view text, uint32_t* replacement) const {
    // A unit: bits 0 to 7 label (bit 31 set: a value instead), bit 8 has a leaf, bit 9 a wide offset, from
    // bit 10 the offset.
    auto offset_of = [](uint32_t unit) { return (unit >> 10) << ((unit & (uint32_t{1} << 9)) >> 6); };
    uint32_t found = 0;
    uint32_t node = offset_of(unit(0));
    for (uint32_t i = 0; i < text.size(); ++i) {
        const auto byte = static_cast<uint8_t>(text[i]);
        if (byte == 0) break;
        node ^= byte;
        if (node >= n_units_) break;
        const uint32_t one = unit(node);
        if ((one & 0x800000FF) != byte) break;
        node ^= offset_of(one);
        if ((one >> 8 & 1) == 0) continue;
        if (node >= n_units_) break;
        *replacement = unit(node) & 0x7FFFFFFF;
        found = i + 1;
    }
    return found;
}

void CharsMap::normalize(std::string_view text, std::string& out) const {
    const std::string_view replacements =
        std::string_view(table_).substr(sizeof(uint32_t) * (size_t{n_units_} + 1));
    while (!text.empty()) {
        uint32_t replacement = 0;
        uint32_t length = longest(text, &replacement);
        // A table that lies could end inside a character, of the text or of the replacements.
        const bool whole = length > 0 && (length == text.size() || !unicode::is_continuation(text[length])) &&
                           replacement < replacements.size() &&
                           !unicode::is_continuation(replacements[replacement]);
        if (whole) {
            out += replacements.data() + replacement;  // ends with a zero byte
        } else {
            length = unicode::length_of(text[0]);
            out += text.substr(0, length);
        }
        text.remove_prefix(length);
    }
}

}  // namespace quantd
