// Unicode facts and UTF-8, as the tokenizers need them.  Table: unicode_data.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace quantd::unicode {

// General categories of the Unicode Character Database; the value is a bit of a mask.
enum class Category : uint8_t {
    Cn,
    Cc,
    Cf,
    Co,
    Cs,
    Ll,
    Lm,
    Lo,
    Lt,
    Lu,
    Mc,
    Me,
    Mn,
    Nd,
    Nl,
    No,
    Pc,
    Pd,
    Pe,
    Pf,
    Pi,
    Po,
    Ps,
    Sc,
    Sk,
    Sm,
    So,
    Zl,
    Zp,
    Zs,
};

struct CategoryStart {
    uint32_t first;
    Category category;
};
struct Range {
    uint32_t first;
    uint32_t last;  // inclusive
};

extern const CategoryStart kCategoryStarts[];
extern const size_t kNumCategoryStarts;
extern const Range kHan[];
extern const size_t kNumHan;

constexpr uint32_t kMaxCode = 0x10FFFF;

constexpr uint32_t bit(Category category) { return uint32_t{1} << static_cast<uint8_t>(category); }

// Mask of a property: "L", "Lu", "P" and so on; 0 for a name that is no category.
uint32_t category_mask(std::string_view name);

// The category of a code point up to kMaxCode, as a mask of one bit.
uint32_t category_bit(uint32_t code);

// White_Space of the Unicode Character Database: \s.
bool is_space(uint32_t code);
bool is_han(uint32_t code);

// Length of the text's first character and its code point; the text is valid UTF-8 and not empty.
struct Decoded {
    uint32_t code;
    uint32_t length;
};
inline Decoded decode(const char* text) {
    const auto* byte = reinterpret_cast<const uint8_t*>(text);
    if (byte[0] < 0x80) return {byte[0], 1};
    if (byte[0] < 0xE0) return {(byte[0] & 0x1Fu) << 6 | (byte[1] & 0x3Fu), 2};
    if (byte[0] < 0xF0) return {(byte[0] & 0x0Fu) << 12 | (byte[1] & 0x3Fu) << 6 | (byte[2] & 0x3Fu), 3};
    return {(byte[0] & 0x07u) << 18 | (byte[1] & 0x3Fu) << 12 | (byte[2] & 0x3Fu) << 6 | (byte[3] & 0x3Fu),
            4};
}

// Length of a character by its first byte, in valid UTF-8.
inline uint32_t length_of(char lead) {
    const auto byte = static_cast<uint8_t>(lead);
    return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

inline bool is_continuation(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) == 0x80; }

// True if all of `text` is well-formed UTF-8 (RFC 3629: no overlong forms, no surrogates).
bool is_utf8(std::string_view text);

void append(std::string& out, uint32_t code);

}  // namespace quantd::unicode
