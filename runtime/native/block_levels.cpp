#include "block_levels.h"

#include <cstddef>
#include <cstring>

#include "blocks.h"
#include "half.h"

namespace quantd {
namespace {

// How the elements of a block share bytes.
enum class Pattern {
    kNone,
    kHalves,      // of 32: nibble j and j + 16 in byte j
    kHalvesOf32,  // the same for each 32 elements
    kPairs,       // of 64: nibble l and l + 32 in byte l
    kLowAndHigh,  // of 128: nibble l and l + 64 in byte l
    kBitPairs,    // of 128: two bits of l, l + 32, l + 64 and l + 96 in byte l
    kBits,        // bit i in its place
    kBitsOf32,    // bit i / 32 of byte i % 32
};
struct Field {
    Pattern pattern = Pattern::kNone;
    size_t begin = 0;  // byte of the block
    int bits = 0;      // of a level
};
struct Place {
    size_t byte;
    size_t shift;
};

inline Place place_of(const Field& field, size_t i) {
    switch (field.pattern) {
        case Pattern::kHalves:
            return {field.begin + i % 16, i / 16 * 4};
        case Pattern::kHalvesOf32:
            return {field.begin + i / 32 * 16 + i % 16, i % 32 / 16 * 4};
        case Pattern::kPairs:
            return {field.begin + i / 64 * 32 + i % 32, i % 64 / 32 * 4};
        case Pattern::kLowAndHigh:
            return {field.begin + i / 128 * 64 + i % 64, i % 128 / 64 * 4};
        case Pattern::kBitPairs:
            return {field.begin + i / 128 * 32 + i % 32, i % 128 / 32 * 2};
        case Pattern::kBits:
            return {field.begin + i / 8, i % 8};
        case Pattern::kBitsOf32:
            return {field.begin + i % 32, i / 32};
        case Pattern::kNone:
            break;
    }
    return {0, 0};
}

struct Layout {
    Field low;   // the lowest bits of a level
    Field high;  // those above, where they lie elsewhere
};

Layout layout_of(Type type) {
    using enum Pattern;
    switch (type) {
        case Type::Q4_0:
            return {{kHalves, offsetof(BlockQ4_0, qs), 4}, {}};
        case Type::Q4_1:
            return {{kHalves, offsetof(BlockQ4_1, qs), 4}, {}};
        case Type::Q5_0:
            return {{kHalves, offsetof(BlockQ5_0, qs), 4}, {kBits, offsetof(BlockQ5_0, qh), 1}};
        case Type::Q5_1:
            return {{kHalves, offsetof(BlockQ5_1, qs), 4}, {kBits, offsetof(BlockQ5_1, qh), 1}};
        case Type::IQ4_NL:
            return {{kHalves, offsetof(BlockIQ4_NL, qs), 4}, {}};
        case Type::IQ4_XS:
            return {{kHalvesOf32, offsetof(BlockIQ4_XS, qs), 4}, {}};
        case Type::Q2_K:
            return {{kBitPairs, offsetof(BlockQ2_K, qs), 2}, {}};
        case Type::Q3_K:
            return {{kBitPairs, offsetof(BlockQ3_K, qs), 2}, {kBitsOf32, offsetof(BlockQ3_K, hmask), 1}};
        case Type::Q4_K:
            return {{kPairs, offsetof(BlockQ4_K, qs), 4}, {}};
        case Type::Q5_K:
            return {{kPairs, offsetof(BlockQ5_K, qs), 4}, {kBitsOf32, offsetof(BlockQ5_K, qh), 1}};
        case Type::Q6_K:
            return {{kLowAndHigh, offsetof(BlockQ6_K, ql), 4}, {kBitPairs, offsetof(BlockQ6_K, qh), 2}};
        default:
            return {};
    }
}

int mask_of(const Field& field) { return (1 << field.bits) - 1; }

template <typename Block>
Block load(const uint8_t* from) {
    Block block;
    std::memcpy(&block, from, sizeof(block));
    return block;
}

void fill(float step, float offset, int n, float*& steps, float*& offsets) {
    for (int i = 0; i < n; ++i) {
        *steps++ = step;
        *offsets++ = offset;
    }
}

// Q4_K and Q5_K begin alike.
void six_bit_scales(const uint8_t* from, float* steps, float* offsets) {
    const auto block = load<BlockQ4_K>(from);
    const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
    const uint8_t* packed = block.scales;
    for (int j = 0; j < 8; ++j) {
        const int scale = j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4);
        const int minimum = j < 4 ? packed[j + 4] & 63 : (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4);
        fill(d * static_cast<float>(scale), dmin * static_cast<float>(minimum), 32, steps, offsets);
    }
}

void read_scales(Type type, const uint8_t* from, float* steps, float* offsets) {
    const auto first_half = [&] { return f16_to_f32(load<uint16_t>(from)); };
    switch (type) {
        case Type::Q4_0:
            return fill(first_half(), 8.0f * first_half(), 32, steps, offsets);
        case Type::Q5_0:
            return fill(first_half(), 16.0f * first_half(), 32, steps, offsets);
        case Type::IQ4_NL:
            return fill(first_half(), 0.0f, 32, steps, offsets);
        case Type::Q4_1:
        case Type::Q5_1:
            return fill(first_half(), -f16_to_f32(load<uint16_t>(from + 2)), 32, steps, offsets);
        case Type::Q4_K:
            return six_bit_scales(from, steps, offsets);
        case Type::Q5_K: {
            static_assert(offsetof(BlockQ4_K, d) == offsetof(BlockQ5_K, d));
            static_assert(offsetof(BlockQ4_K, dmin) == offsetof(BlockQ5_K, dmin));
            static_assert(offsetof(BlockQ4_K, scales) == offsetof(BlockQ5_K, scales));
            return six_bit_scales(from, steps, offsets);
        }
        case Type::Q2_K: {
            const auto block = load<BlockQ2_K>(from);
            const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
            for (const uint8_t packed : block.scales) {
                fill(d * static_cast<float>(packed & 15), dmin * static_cast<float>(packed >> 4), 16, steps,
                     offsets);
            }
            return;
        }
        case Type::Q3_K: {
            const auto block = load<BlockQ3_K>(from);
            const float d = f16_to_f32(block.d);
            for (int j = 0; j < 16; ++j) {
                const int low = j < 8 ? block.scales[j] & 15 : block.scales[j - 8] >> 4;
                const int high = (block.scales[8 + j % 4] >> (j / 4 * 2)) & 3;
                const float step = d * static_cast<float>((low | high << 4) - 32);
                fill(step, 4.0f * step, 16, steps, offsets);
            }
            return;
        }
        case Type::Q6_K: {
            const auto block = load<BlockQ6_K>(from);
            const float d = f16_to_f32(block.d);
            for (const int8_t scale : block.scales) {
                const float step = d * static_cast<float>(scale);
                fill(step, 32.0f * step, 16, steps, offsets);
            }
            return;
        }
        case Type::IQ4_XS: {
            const auto block = load<BlockIQ4_XS>(from);
            const float d = f16_to_f32(block.d);
            for (int j = 0; j < 8; ++j) {
                const int low = (block.scales_l[j / 2] >> (j % 2 * 4)) & 15;
                const int high = (block.scales_h >> (2 * j)) & 3;
                fill(d * static_cast<float>((low | high << 4) - 32), 0.0f, 32, steps, offsets);
            }
            return;
        }
        default:
            return;
    }
}

}  // namespace

LevelKind level_kind(Type type) {
    const Layout layout = layout_of(type);
    if (layout.low.pattern == Pattern::kNone) return {};
    const bool has_book = type == Type::IQ4_NL || type == Type::IQ4_XS;
    return {1 << (layout.low.bits + layout.high.bits), has_book ? kIq4Values : nullptr};
}

void read_levels(Type type, const uint8_t* block, uint8_t* q, float* step, float* offset) {
    const auto [low, high] = layout_of(type);
    const auto n = static_cast<size_t>(type_traits(type).block_elements);
    for (size_t i = 0; i < n; ++i) {
        const Place at = place_of(low, i), above = place_of(high, i);
        const int low_bits = (block[at.byte] >> at.shift) & mask_of(low);
        const int high_bits = (block[above.byte] >> above.shift) & mask_of(high);
        q[i] = static_cast<uint8_t>(low_bits | high_bits << low.bits);
    }
    read_scales(type, block, step, offset);
}

void write_levels(Type type, const uint8_t* q, uint8_t* block) {
    const auto [low, high] = layout_of(type);
    const auto n = static_cast<size_t>(type_traits(type).block_elements);
    const auto put = [block](const Place& at, int mask, int value) {
        block[at.byte] =
            static_cast<uint8_t>((block[at.byte] & ~(mask << at.shift)) | ((value & mask) << at.shift));
    };
    for (size_t i = 0; i < n; ++i) {
        put(place_of(low, i), mask_of(low), q[i]);
        put(place_of(high, i), mask_of(high),
            q[i] >> low.bits);  // a type without keeps byte 0: nothing is masked
    }
}

}  // namespace quantd
