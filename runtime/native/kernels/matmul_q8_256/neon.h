// Matmul of the types with super-blocks of 256 weights with Q8_256 activations, 128 bits wide.  neon.cpp and
// neondot.cpp include this with QUANTD_LEVEL set to their namespace.
//
// The quants of a super-block are unpacked to signed bytes once for up to four activation rows.  A
// super-block's sum is an exact integer; one multiply-add follows, two where the type has minima.
#include "blocks.h"
#include "kernels/levels.h"
#include "kernels/neon.h"
#include "kernels/tile.h"

namespace quantd::QUANTD_LEVEL {
namespace {

// Fields of BlockQ8_256.
constexpr int64_t kActBytes = sizeof(BlockQ8_256), kActSums = 256, kActScale = 288, kActGroupSums = 292;

// A super-block as signed quants of 16 elements each, in natural order.
struct Unpacked {
    int8x16_t q[16];
    int32_t scale[16];  // of 16 elements; of 32 where the type has eight
    int16x8_t mins[2];  // of 16 elements; the first eight of 32
    float d, dmin;
};

uint32_t load_u32(const uint8_t* p) {
    uint32_t bits;
    __builtin_memcpy(&bits, p, 4);
    return bits;
}

int8x16_t low_nibbles(uint8x16_t packed) { return vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(0x0f))); }
int8x16_t high_nibbles(uint8x16_t packed) { return vreinterpretq_s8_u8(vshrq_n_u8(packed, 4)); }

// packed shifted right by `count`, 0 to 7, and masked.
uint8x16_t field(uint8x16_t packed, int count, uint8_t mask) {
    return vandq_u8(vshlq_u8(packed, vdupq_n_s8(static_cast<int8_t>(-count))), vdupq_n_u8(mask));
}

void widen(const int8_t* bytes, int count, int32_t* out) {
    for (int j = 0; j < count; ++j) out[j] = bytes[j];
}

// The eight 6-bit scales and minima of Q4_K and Q5_K, with d and dmin before them.
void unpack_scales(const uint8_t* block, Unpacked& out) {
    const uint32_t a = load_u32(block + 4), b = load_u32(block + 8), c = load_u32(block + 12);
    const uint32_t words[4] = {a & 0x3f3f3f3fu, (c & 0x0f0f0f0fu) | ((a >> 2) & 0x30303030u), b & 0x3f3f3f3fu,
                               ((c >> 4) & 0x0f0f0f0fu) | ((b >> 2) & 0x30303030u)};
    int8_t bytes[16];
    __builtin_memcpy(bytes, words, 16);
    widen(bytes, 8, out.scale);
    out.mins[0] = vmovl_s8(vld1_s8(bytes + 8));
    out.d = float_of_half(block);
    out.dmin = float_of_half(block + 2);
}

struct Q4K {
    static constexpr int64_t kBytes = sizeof(BlockQ4_K);
    static constexpr int kScales = 8;
    static constexpr bool kHasMin = true;
    static void unpack(const uint8_t* block, Unpacked& out) {
        unpack_scales(block, out);
        for (int c = 0; c < 4; ++c) {  // 32 bytes: groups 2c and 2c + 1
            for (int i = 0; i < 2; ++i) {
                const uint8x16_t packed = vld1q_u8(block + 16 + 32 * c + 16 * i);
                out.q[4 * c + i] = low_nibbles(packed);
                out.q[4 * c + 2 + i] = high_nibbles(packed);
            }
        }
    }
};

struct Q5K {
    static constexpr int64_t kBytes = sizeof(BlockQ5_K);
    static constexpr int kScales = 8;
    static constexpr bool kHasMin = true;
    static void unpack(const uint8_t* block, Unpacked& out) {
        unpack_scales(block, out);
        for (int i = 0; i < 2; ++i) {
            const uint8x16_t high = vld1q_u8(block + 16 + 16 * i);
            for (int c = 0; c < 4; ++c) {
                const uint8x16_t packed = vld1q_u8(block + 48 + 32 * c + 16 * i);
                const uint8x16_t first = vshlq_n_u8(field(high, 2 * c, 1), 4);
                const uint8x16_t second = vshlq_n_u8(field(high, 2 * c + 1, 1), 4);
                out.q[4 * c + i] = vorrq_s8(low_nibbles(packed), vreinterpretq_s8_u8(first));
                out.q[4 * c + 2 + i] = vorrq_s8(high_nibbles(packed), vreinterpretq_s8_u8(second));
            }
        }
    }
};

struct Q6K {
    static constexpr int64_t kBytes = sizeof(BlockQ6_K);
    static constexpr int kScales = 16;
    static constexpr bool kHasMin = false;
    static void unpack(const uint8_t* block, Unpacked& out) {
        for (int half = 0; half < 2; ++half) {
            for (int k = 0; k < 8; ++k) {
                const uint8x16_t low = vld1q_u8(block + 64 * half + 16 * (k % 4));
                const uint8x16_t high = vld1q_u8(block + 128 + 32 * half + 16 * (k % 2));
                const uint8x16_t bits =
                    vorrq_u8(field(low, k / 4 * 4, 0x0f), vshlq_n_u8(field(high, k / 2 * 2, 3), 4));
                out.q[8 * half + k] = vsubq_s8(vreinterpretq_s8_u8(bits), vdupq_n_s8(32));
            }
        }
        int8_t scales[16];
        __builtin_memcpy(scales, block + 192, 16);
        widen(scales, 16, out.scale);
        out.d = float_of_half(block + 208);
    }
};

// Two bits of each element of 16: element group j of 16 of a super-block.
uint8x16_t two_bits(const uint8_t* qs, int j) {
    return field(vld1q_u8(qs + 32 * (j / 8) + 16 * (j % 2)), j % 8 / 2 * 2, 3);
}

struct Q2K {
    static constexpr int64_t kBytes = sizeof(BlockQ2_K);
    static constexpr int kScales = 16;
    static constexpr bool kHasMin = true;
    static void unpack(const uint8_t* block, Unpacked& out) {
        for (int j = 0; j < 16; ++j) out.q[j] = vreinterpretq_s8_u8(two_bits(block + 16, j));
        const uint8x16_t packed = vld1q_u8(block);
        int8_t scales[16];
        vst1q_s8(scales, low_nibbles(packed));
        widen(scales, 16, out.scale);
        const int8x16_t mins = high_nibbles(packed);
        out.mins[0] = vmovl_s8(vget_low_s8(mins));
        out.mins[1] = vmovl_s8(vget_high_s8(mins));
        out.d = float_of_half(block + 80);
        out.dmin = float_of_half(block + 82);
    }
};

struct Q3K {
    static constexpr int64_t kBytes = sizeof(BlockQ3_K);
    static constexpr int kScales = 16;
    static constexpr bool kHasMin = false;
    static void unpack(const uint8_t* block, Unpacked& out) {
        for (int j = 0; j < 16; ++j) {
            const uint8x16_t high = vshlq_n_u8(field(vld1q_u8(block + 16 * (j % 2)), j / 2, 1), 2);
            const uint8x16_t bits = vorrq_u8(two_bits(block + 32, j), high);
            out.q[j] = vsubq_s8(vreinterpretq_s8_u8(bits), vdupq_n_s8(4));
        }
        for (int j = 0; j < 16; ++j) {
            const int low = (block[96 + j % 8] >> (j / 8 * 4)) & 0x0f;
            const int high = (block[104 + j % 4] >> (j / 4 * 2)) & 3;
            out.scale[j] = (low | high << 4) - 32;
        }
        out.d = float_of_half(block + 108);
    }
};

struct Iq4Xs {
    static constexpr int64_t kBytes = sizeof(BlockIQ4_XS);
    static constexpr int kScales = 8;
    static constexpr bool kHasMin = false;
    static void unpack(const uint8_t* block, Unpacked& out) {
        const int8x16_t book = vld1q_s8(kIq4Values);
        uint16_t high_bits;
        __builtin_memcpy(&high_bits, block + 2, 2);
        for (int j = 0; j < 8; ++j) {
            const uint8x16_t packed = vld1q_u8(block + 8 + 16 * j);
            out.q[2 * j] = vqtbl1q_s8(book, vandq_u8(packed, vdupq_n_u8(0x0f)));
            out.q[2 * j + 1] = vqtbl1q_s8(book, vshrq_n_u8(packed, 4));
            const int low = (block[4 + j / 2] >> (j % 2 * 4)) & 0x0f;
            out.scale[j] = (low | ((high_bits >> (2 * j)) & 3) << 4) - 32;
        }
        out.d = float_of_half(block);
    }
};

int32x4_t products(int16x8_t a, int16x8_t b) {
    return vmlal_s16(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vget_high_s16(a), vget_high_s16(b));
}

int16x8_t load_words(const uint8_t* p) { return vreinterpretq_s16_u8(vld1q_u8(p)); }

float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

template <class Format>
struct Kernel {
    using Acc = float;
    static constexpr int kRows = 4, kOuts = 1;
    static constexpr int64_t kChunkUnits = 2;

    static int64_t units(int64_t n_in) { return n_in / kQ256; }
    static Acc zero() { return 0.0f; }
    static float total(const Acc& acc) { return acc; }

    template <int kTileOuts, int kTileRows>
    static void dot(const Dot& tile, Acc* acc) {
        static_assert(kTileOuts == 1);
        for (int64_t b = tile.begin; b < tile.end; ++b) {
            Unpacked weight;
            Format::unpack(tile.weight + b * Format::kBytes, weight);
            for (int r = 0; r < kTileRows; ++r) {
                add_block(weight, tile.act + r * tile.act_stride + b * kActBytes, acc[r]);
            }
        }
    }

    [[gnu::always_inline]] static inline void add_block(const Unpacked& weight, const uint8_t* act,
                                                        Acc& acc) {
        const int8_t* qs = reinterpret_cast<const int8_t*>(act);
        int32x4_t sum = vdupq_n_s32(0);
        for (int j = 0; j < 16; j += 2) {
            const int8_t* group = qs + kGroupOrder[j / 2] * 32;
            const int8x16_t first = vld1q_s8(group), second = vld1q_s8(group + 16);
            const int32x4_t part = dot16(vdupq_n_s32(0), weight.q[j], first);
            if constexpr (Format::kScales == 8) {
                sum = vmlaq_n_s32(sum, dot16(part, weight.q[j + 1], second), weight.scale[j / 2]);
            } else {
                sum = vmlaq_n_s32(sum, part, weight.scale[j]);
                const int32x4_t next = dot16(vdupq_n_s32(0), weight.q[j + 1], second);
                sum = vmlaq_n_s32(sum, next, weight.scale[j + 1]);
            }
        }
        float act_scale;
        __builtin_memcpy(&act_scale, act + kActScale, 4);
        acc = fused(static_cast<float>(vaddvq_s32(sum)), weight.d * act_scale, acc);
        if constexpr (Format::kHasMin) {
            int32x4_t mins;
            if constexpr (Format::kScales == 8) {
                mins = products(weight.mins[0], load_words(act + kActGroupSums));
            } else {
                mins = vaddq_s32(products(weight.mins[0], load_words(act + kActSums)),
                                 products(weight.mins[1], load_words(act + kActSums + 16)));
            }
            acc = fused(-static_cast<float>(vaddvq_s32(mins)), weight.dmin * act_scale, acc);
        }
    }
};

}  // namespace

void add_matmul_q8_256(Kernels& table) {
    auto set = [&](Type type, MatmulFn function) {
        table.act_form[static_cast<uint32_t>(type)] = ActForm::Q8_256;
        table.matmul[static_cast<uint32_t>(type)] = function;
    };
    set(Type::Q2_K, run_matmul<Kernel<Q2K>>);
    set(Type::Q3_K, run_matmul<Kernel<Q3K>>);
    set(Type::Q4_K, run_matmul<Kernel<Q4K>>);
    set(Type::Q5_K, run_matmul<Kernel<Q5K>>);
    set(Type::Q6_K, run_matmul<Kernel<Q6K>>);
    set(Type::IQ4_XS, run_matmul<Kernel<Iq4Xs>>);
}

}  // namespace quantd::QUANTD_LEVEL
