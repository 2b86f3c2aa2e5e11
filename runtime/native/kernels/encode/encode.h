// Block encoders of the quantizer: floats to GGUF blocks.
//
// Every level compiles the same source (level.h) with vectors of its own width.  All arithmetic is
// elementwise over 16 lanes, one lane a sub-block, in a written order and without contraction, or exact in
// whole numbers, so every level gives the same bytes.
#pragma once

#include <cstdint>

#include "types.h"

namespace quantd::encode {

// Encodes n_blocks consecutive blocks: x (n_blocks * block_elements) finite floats, |x| <= max_abs(type).
// importance (n_blocks * block_elements): how much the squared error of each weight counts, about 1 on
// average and in [0, 2^20]; nullptr where nothing is known.
using EncodeFn = void (*)(const float* x, const float* importance, uint8_t* out, int64_t n_blocks);

// Source elements of F32, F16 or BF16 (little-endian, any alignment) to floats.  Gives the bits of the
// largest |x|: 0x7f800000 and more mean that an infinity or a NaN is among them.
using LoadFn = uint32_t (*)(const uint8_t* source, float* out, int64_t n);

struct Encoders {
    const char* level;  // "scalar", "avx2", "avx512vnni"

    LoadFn load[kMaxTypes];  // nullptr: not a source type

    // nullptr: no encoder for this type.
    EncodeFn encode[kMaxTypes];
};

// Largest |x| that the type's encoder takes: beyond it a scale would leave f16.
float max_abs(Type type);

extern const Encoders kScalar;
#if defined(__x86_64__)
extern const Encoders kAvx2;
extern const Encoders kAvx512Vnni;
#endif

// The encoders of a level that this CPU has; nullptr: the level that QUANTD_CPU_LEVEL names, else the best.
// Throws std::invalid_argument.
const Encoders& encoders_for(const char* level);

// Throws std::invalid_argument for a type that is no source.
LoadFn loader_of(const Encoders& encoders, Type source_type);

}  // namespace quantd::encode
