// The packed blocks of the GGUF weight types, byte for byte, and the tables that some of them share.
// Plain data only: this header is included by files of every CPU level, so it holds no function.
// Source: the block table of the GGUF types (sizes and field order); all fields are little-endian.
// Weight rows lie in a mapped file at any even or odd address: read blocks with memcpy or unaligned loads.
#pragma once

#include <cstdint>

namespace quantd {

constexpr int64_t kQ32 = 32;    // elements of a legacy block
constexpr int64_t kQ256 = 256;  // elements of a super-block

#pragma pack(push, 1)

struct BlockQ4_0 {  // d * (q - 8); byte j: low nibble element j, high nibble element j + 16
    uint16_t d;
    uint8_t qs[16];
};
struct BlockQ4_1 {  // d * q + m
    uint16_t d, m;
    uint8_t qs[16];
};
struct BlockQ5_0 {  // d * (q - 16); bit j of qh is bit 4 of element j
    uint16_t d;
    uint32_t qh;
    uint8_t qs[16];
};
struct BlockQ5_1 {  // d * q + m
    uint16_t d, m;
    uint32_t qh;
    uint8_t qs[16];
};
struct BlockQ8_0 {  // d * q
    uint16_t d;
    int8_t qs[32];
};
struct BlockQ2_K {       // d * s * q - dmin * m; per 128 elements byte l holds l, l+32, l+64, l+96
    uint8_t scales[16];  // per 16 elements: low nibble s, high nibble m
    uint8_t qs[64];
    uint16_t d, dmin;
};
struct BlockQ3_K {       // d * (s - 32) * (q - 4), bit 2 of q in hmask
    uint8_t hmask[32];   // bit i / 32 of byte i % 32 belongs to element i
    uint8_t qs[64];      // low two bits, as in Q2_K
    uint8_t scales[12];  // sixteen 6-bit s
    uint16_t d;
};
struct BlockQ4_K {  // d * s * q - dmin * m; per 64 elements 32 bytes: low nibbles first, then high nibbles
    uint16_t d, dmin;
    uint8_t scales[12];  // eight 6-bit s and eight 6-bit m, one pair per 32 elements
    uint8_t qs[128];
};
struct BlockQ5_K {  // as Q4_K; bit i / 32 of qh[i % 32] is bit 4 of element i
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
};
struct BlockQ6_K {    // d * s * (q - 32), s per 16 elements
    uint8_t ql[128];  // per 128 elements: byte l low nibble l, high nibble l+64 (l in [0, 64))
    uint8_t qh[64];   // per 128 elements: byte l holds two bits of l, l+32, l+64, l+96 (l in [0, 32))
    int8_t scales[16];
    uint16_t d;
};
struct BlockIQ4_NL {  // d * kIq4Values[q]; nibbles as in Q4_0
    uint16_t d;
    uint8_t qs[16];
};
struct BlockIQ4_XS {  // d * (s - 32) * kIq4Values[q]; eight blocks of 32, nibbles of each as in Q4_0
    uint16_t d;
    uint16_t scales_h;  // two high bits of each s
    uint8_t scales_l[4];
    uint8_t qs[128];
};
struct BlockMXFP4 {  // 2^(e - 128) * kMxfp4Values[q]; nibbles as in Q4_0
    uint8_t e;
    uint8_t qs[16];
};

#pragma pack(pop)

static_assert(sizeof(BlockQ4_0) == 18);
static_assert(sizeof(BlockQ4_1) == 20);
static_assert(sizeof(BlockQ5_0) == 22);
static_assert(sizeof(BlockQ5_1) == 24);
static_assert(sizeof(BlockQ8_0) == 34);
static_assert(sizeof(BlockQ2_K) == 84);
static_assert(sizeof(BlockQ3_K) == 110);
static_assert(sizeof(BlockQ4_K) == 144);
static_assert(sizeof(BlockQ5_K) == 176);
static_assert(sizeof(BlockQ6_K) == 210);
static_assert(sizeof(BlockIQ4_NL) == 18);
static_assert(sizeof(BlockIQ4_XS) == 136);
static_assert(sizeof(BlockMXFP4) == 17);

// The code book of IQ4_NL and IQ4_XS.
constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
// E2M1 values, doubled (the block's scale is halved to match).
constexpr int8_t kMxfp4Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

}  // namespace quantd
