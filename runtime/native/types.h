// Tensor types of GGUF: ids, block sizes and row sizes.
// Source: the GGUF format page and the block table of the k-quants (bytes and elements of each block).
#pragma once

#include <cstdint>

namespace quantd {

enum class Type : uint32_t {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
};

constexpr uint32_t kMaxTypes = 64;

// What is known of a type id.  block_elements == 0 marks an id that quantd does not know.
struct TypeTraits {
    const char* name;        // the name GGUF users know, "Q4_K"
    int64_t block_elements;  // elements of one block
    int64_t block_bytes;     // bytes of one block
    bool is_weight;          // can be the weight of a matmul or embedding here
};

// Never fails: an unknown id gives {"?", 0, 0, false}.  Defined in types.cpp.
const TypeTraits& type_traits(uint32_t id);
inline const TypeTraits& type_traits(Type type) { return type_traits(static_cast<uint32_t>(type)); }

}  // namespace quantd
