// The levels (quantized integers) inside encoded blocks, and what each decodes to: for work on blocks that
// keeps their scales.
#pragma once

#include <cstdint>

#include "types.h"

namespace quantd {

// A weight decodes to step * level(q) - offset, up to the rounding of a float; level(q) is q, or book[q].
struct LevelKind {
    int n_levels = 0;              // 0: this type has no levels that could be chosen anew
    const int8_t* book = nullptr;  // (n_levels), rising
};
LevelKind level_kind(Type type);

// One block of a type that has levels: its q, and each one's step and offset, (block_elements).
void read_levels(Type type, const uint8_t* block, uint8_t* q, float* step, float* offset);

// Puts q (block_elements) into a block, whose scales stay.
void write_levels(Type type, const uint8_t* q, uint8_t* block);

}  // namespace quantd
