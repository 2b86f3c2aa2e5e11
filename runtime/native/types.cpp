#include "types.h"

#include <array>

namespace quantd {
namespace {

constexpr TypeTraits kUnknown{"?", 0, 0, false};

constexpr std::array<TypeTraits, kMaxTypes> make_table() {
    std::array<TypeTraits, kMaxTypes> table{};
    for (auto& entry : table) entry = kUnknown;
    auto set = [&](Type type, TypeTraits traits) { table[static_cast<uint32_t>(type)] = traits; };
    set(Type::F32, {"F32", 1, 4, true});
    set(Type::F16, {"F16", 1, 2, true});
    set(Type::Q4_0, {"Q4_0", 32, 18, true});
    set(Type::Q4_1, {"Q4_1", 32, 20, true});
    set(Type::Q5_0, {"Q5_0", 32, 22, true});
    set(Type::Q5_1, {"Q5_1", 32, 24, true});
    set(Type::Q8_0, {"Q8_0", 32, 34, true});
    set(Type::Q2_K, {"Q2_K", 256, 84, true});
    set(Type::Q3_K, {"Q3_K", 256, 110, true});
    set(Type::Q4_K, {"Q4_K", 256, 144, true});
    set(Type::Q5_K, {"Q5_K", 256, 176, true});
    set(Type::Q6_K, {"Q6_K", 256, 210, true});
    set(Type::IQ4_NL, {"IQ4_NL", 32, 18, true});
    set(Type::IQ4_XS, {"IQ4_XS", 256, 136, true});
    set(Type::I8, {"I8", 1, 1, false});
    set(Type::I16, {"I16", 1, 2, false});
    set(Type::I32, {"I32", 1, 4, false});
    set(Type::I64, {"I64", 1, 8, false});
    set(Type::F64, {"F64", 1, 8, false});
    set(Type::BF16, {"BF16", 1, 2, true});
    set(Type::MXFP4, {"MXFP4", 32, 17, true});
    // Known by name and size, so that such files can be inspected; not served.
    set(Type::IQ2_XXS, {"IQ2_XXS", 256, 66, false});
    set(Type::IQ2_XS, {"IQ2_XS", 256, 74, false});
    set(Type::IQ3_XXS, {"IQ3_XXS", 256, 98, false});
    set(Type::IQ1_S, {"IQ1_S", 256, 50, false});
    set(Type::IQ3_S, {"IQ3_S", 256, 110, false});
    set(Type::IQ2_S, {"IQ2_S", 256, 82, false});
    set(Type::IQ1_M, {"IQ1_M", 256, 56, false});
    set(Type::TQ1_0, {"TQ1_0", 256, 54, false});
    set(Type::TQ2_0, {"TQ2_0", 256, 66, false});
    set(Type::NVFP4, {"NVFP4", 64, 36, false});
    set(Type::Q1_0, {"Q1_0", 128, 18, false});
    return table;
}

constexpr auto kTable = make_table();

}  // namespace

const TypeTraits& type_traits(uint32_t id) { return id < kMaxTypes ? kTable[id] : kUnknown; }

}  // namespace quantd
