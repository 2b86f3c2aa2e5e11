// Assembles the table of kernels of each CPU level and picks one.
#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "blocks.h"
#include "kernels.h"
#include "kernels/levels.h"

namespace quantd {
namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

Kernels scalar_table() {
    Kernels table{};
    table.level = "scalar";
    scalar::add_dequantize(table);
    scalar::add_matmul(table);
    scalar::add_matmul_q8_32(table);
    scalar::add_matmul_q8_256(table);
    scalar::add_activation(table);
    scalar::add_elementwise(table);
    scalar::add_rope(table);
    scalar::add_attention(table);
    return table;
}

#if defined(__x86_64__)
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
}

#if defined(QUANTD_AVXVNNI)
// Asked by hand: not every compiler that makes the instructions has a name for them here.  That the system
// saves wide registers is part of has_avx2.
bool has_avxvnni() {
#if defined(QUANTD_EMULATE_AVXVNNI)
    return true;  // tests/emulated_avxvnni.h
#endif
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || eax < 1) return false;
    __cpuid_count(7, 1, eax, ebx, ecx, edx);
    return (eax & 1u << 4) != 0;
}
#endif

bool has_avx512vnni() {
#if defined(QUANTD_EMULATE_AVX512)
    return true;  // tests/emulated_avx512.h
#endif
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

void add_avx2(Kernels& table) {
    table.level = "avx2";
    avx2::add_dequantize(table);
    avx2::add_matmul(table);
    avx2::add_matmul_q8_32(table);
    avx2::add_matmul_q8_256(table);
    avx2::add_activation(table);
    avx2::add_elementwise(table);
    avx2::add_rope(table);
    avx2::add_attention(table);
}

#if defined(QUANTD_AVXVNNI)
void add_avxvnni(Kernels& table) {
    table.level = "avxvnni";
    avxvnni::add_matmul_q8_32(table);
    avxvnni::add_matmul_q8_256(table);
    avxvnni::add_attention(table);
}
#endif

void add_avx512vnni(Kernels& table) {
    table.level = "avx512vnni";
    avx512vnni::add_matmul(table);
    avx512vnni::add_matmul_q8_32(table);
    avx512vnni::add_matmul_q8_256(table);
    avx512vnni::add_activation(table);
    avx512vnni::add_elementwise(table);
    avx512vnni::add_attention(table);
}
#elif defined(__aarch64__)
constexpr unsigned long kHasDotProduct = 1ul << 20;  // HWCAP_ASIMDDP of the kernel's list for arm64

void add_neon(Kernels& table) {
    table.level = "neon";
    neon::add_matmul(table);
    neon::add_matmul_q8_32(table);
    neon::add_matmul_q8_256(table);
    neon::add_activation(table);
    neon::add_elementwise(table);
    neon::add_rope(table);
    neon::add_attention(table);
}

void add_neondot(Kernels& table) {
    table.level = "neondot";
    neondot::add_matmul_q8_32(table);
    neondot::add_matmul_q8_256(table);
}
#endif

struct Levels {
    Kernels tables[4];
    const char* names[5] = {};  // narrowest first, terminated by nullptr
    int count = 0;

    void add(const Kernels& table) {
        tables[count] = table;
        names[count++] = table.level;
    }

    Levels() {
        Kernels table = scalar_table();
        add(table);
#if defined(__x86_64__)
        __builtin_cpu_init();
        if (has_avx2()) {
            add_avx2(table);
            add(table);
#if defined(QUANTD_AVXVNNI)
            if (has_avxvnni()) {
                add_avxvnni(table);
                add(table);
            }
#endif
            if (has_avx512vnni()) {
                add_avx512vnni(table);
                add(table);
            }
        }
#elif defined(__aarch64__)
        add_neon(table);
        add(table);
        if ((getauxval(AT_HWCAP) & kHasDotProduct) != 0) {
            add_neondot(table);
            add(table);
        }
#endif
    }
};

const Levels& levels() {
    static const Levels instance;
    return instance;
}

}  // namespace

int64_t act_row_bytes(ActForm form, int64_t n_in) {
    switch (form) {
        case ActForm::Q8_32:
            return round_up(n_in + n_in / kQ32 * 8, 64);
        case ActForm::Q8_256:
            return n_in / kQ256 * int64_t(sizeof(BlockQ8_256));
        case ActForm::F32:
            break;
    }
    return round_up(n_in * 4, 64);
}

int64_t kv_row_bytes(KvType type, int64_t head_dim) {
    if (type == KvType::F32) return head_dim * 4;
    return type == KvType::F16 ? head_dim * 2 : head_dim / kQ32 * int64_t(sizeof(BlockQ8_0));
}

int64_t attention_scratch_floats(int64_t n_rows, int64_t group, int64_t head_dim) {
    // Of a tile of six heads: scores, scaled weights and sums.  Of each head: a factor and a query in words.
    const int64_t heads = n_rows * group;
    return 6 * (2 * kAttentionRange + round_up(head_dim, 8)) + heads + (heads * head_dim + 1) / 2 + 64;
}

const char* const* available_levels() { return levels().names; }

const Kernels& kernels_for(const char* level_or_null) {
    const Levels& all = levels();
    const char* wanted = level_or_null != nullptr ? level_or_null : std::getenv("QUANTD_CPU_LEVEL");
    if (wanted == nullptr || *wanted == '\0') return all.tables[all.count - 1];
    std::string known;
    for (int i = 0; i < all.count; ++i) {
        if (std::string(wanted) == all.names[i]) return all.tables[i];
        known += (i ? ", " : "") + std::string(all.names[i]);
    }
    throw std::invalid_argument("CPU level '" + std::string(wanted) +
                                "' is unknown or not available here; available: " + known);
}

}  // namespace quantd
