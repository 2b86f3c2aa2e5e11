#include "tokenizer/unicode.h"

#include <algorithm>
#include <memory>
#include <vector>

namespace quantd::unicode {
namespace {

constexpr const char* kNames[] = {"Cn", "Cc", "Cf", "Co", "Cs", "Ll", "Lm", "Lo", "Lt", "Lu",
                                  "Mc", "Me", "Mn", "Nd", "Nl", "No", "Pc", "Pd", "Pe", "Pf",
                                  "Pi", "Po", "Ps", "Sc", "Sk", "Sm", "So", "Zl", "Zp", "Zs"};

constexpr uint32_t kBlockCodes = 256;
constexpr uint32_t kNumBlocks = (kMaxCode + 1) / kBlockCodes;

// Category by code point in two steps; blocks of one category alone share one copy.  Some 170 KB.
class Table {
  public:
    Table() : block_of_(kNumBlocks) {
        std::vector<int> uniform(std::size(kNames), -1);
        std::vector<uint8_t> block(kBlockCodes);
        size_t run = 0;
        for (uint32_t i = 0; i < kNumBlocks; ++i) {
            for (uint32_t j = 0; j < kBlockCodes; ++j) {
                const uint32_t code = i * kBlockCodes + j;
                while (run + 1 < kNumCategoryStarts && kCategoryStarts[run + 1].first <= code) ++run;
                block[j] = static_cast<uint8_t>(kCategoryStarts[run].category);
            }
            const bool same =
                std::all_of(block.begin(), block.end(), [&](uint8_t c) { return c == block[0]; });
            if (same && uniform[block[0]] >= 0) {
                block_of_[i] = static_cast<uint16_t>(uniform[block[0]]);
                continue;
            }
            const auto number = static_cast<uint16_t>(categories_.size() / kBlockCodes);
            if (same) uniform[block[0]] = number;
            block_of_[i] = number;
            categories_.insert(categories_.end(), block.begin(), block.end());
        }
        categories_.shrink_to_fit();
    }

    uint32_t category_bit(uint32_t code) const {
        return uint32_t{1}
               << categories_[size_t{block_of_[code / kBlockCodes]} * kBlockCodes + code % kBlockCodes];
    }

  private:
    std::vector<uint16_t> block_of_;   // (kNumBlocks)
    std::vector<uint8_t> categories_;  // (blocks that differ, kBlockCodes)
};

const Table& table() {
    static const Table instance;
    return instance;
}

}  // namespace

uint32_t category_mask(std::string_view name) {
    uint32_t mask = 0;
    for (size_t i = 0; i < std::size(kNames); ++i) {
        const std::string_view own = kNames[i];
        if (name == own || (name.size() == 1 && name[0] == own[0])) mask |= uint32_t{1} << i;
    }
    return mask;
}

uint32_t category_bit(uint32_t code) {
    return code > kMaxCode ? bit(Category::Cn) : table().category_bit(code);
}

bool is_space(uint32_t code) {
    return (code >= 0x09 && code <= 0x0D) || code == 0x20 || code == 0x85 || code == 0xA0 || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F ||
           code == 0x205F || code == 0x3000;
}

bool is_han(uint32_t code) {
    const Range* end = kHan + kNumHan;
    const Range* found =
        std::lower_bound(kHan, end, code, [](const Range& range, uint32_t c) { return range.last < c; });
    return found != end && found->first <= code;
}

bool is_utf8(std::string_view text) {
    size_t i = 0;
    while (i < text.size()) {
        auto at = [&](size_t offset) {
            return i + offset < text.size() ? static_cast<uint8_t>(text[i + offset]) : uint8_t{0};
        };
        auto continues = [&](size_t offset, uint8_t low = 0x80, uint8_t high = 0xBF) {
            return at(offset) >= low && at(offset) <= high;
        };
        const uint8_t lead = at(0);
        if (lead < 0x80) {
            i += 1;
        } else if (lead >= 0xC2 && lead <= 0xDF && continues(1)) {
            i += 2;
        } else if (lead >= 0xE0 && lead <= 0xEF &&
                   continues(1, lead == 0xE0 ? 0xA0 : 0x80, lead == 0xED ? 0x9F : 0xBF) && continues(2)) {
            i += 3;
        } else if (lead >= 0xF0 && lead <= 0xF4 &&
                   continues(1, lead == 0xF0 ? 0x90 : 0x80, lead == 0xF4 ? 0x8F : 0xBF) && continues(2) &&
                   continues(3)) {
            i += 4;
        } else {
            return false;
        }
    }
    return true;
}

void append(std::string& out, uint32_t code) {
    auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
    if (code < 0x80) {
        put(code);
    } else if (code < 0x800) {
        put(0xC0 | code >> 6);
        put(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        put(0xE0 | code >> 12);
        put(0x80 | (code >> 6 & 0x3F));
        put(0x80 | (code & 0x3F));
    } else {
        put(0xF0 | code >> 18);
        put(0x80 | (code >> 12 & 0x3F));
        put(0x80 | (code >> 6 & 0x3F));
        put(0x80 | (code & 0x3F));
    }
}

}  // namespace quantd::unicode
