// The contract between the step executor and the kernels: one struct of function pointers per CPU level.
// The scalar level is the specification; every wide level is tested against it (tests/kernels).
//
// Batch invariance: the bits of one activation row's result depend on that row and the weights only, never on
// how many rows are computed together, on the range of weight rows in one call, or on the thread count.
#pragma once

#include <cstdint>

#include "types.h"

namespace quantd {

// ---- activations, quantized once per row and used by every matmul that reads the row
// -------------------------

// The form in which a matmul of some weight type reads its activations.
enum class ActForm : uint32_t {
    F32 = 0,     // plain floats (n_in)
    Q8_32 = 1,   // int8 with one scale per 32 elements: weights in blocks of 32
    Q8_256 = 2,  // BlockQ8_256 per 256 elements: k-quants
};

// One activation row is quantized as a whole, 64-byte aligned, act_row_bytes long; rows follow one another at
// a stride that is a multiple of 64.  Layouts are the same at every level, and so are their bits.
//
// Q8_32, in this order, nothing between:
//     int8_t  qs[n_in]         value = d[i / 32] * qs[i], qs in [-127, 127]
//     float   d[n_in / 32]
//     float   sums[n_in / 32]  sum of the 32 qs: folds minima, and offsets that make weights unsigned
//
// Q8_256: n_in / 256 of the block below.  Inside a block the eight groups of 32 elements are stored in the
// order kGroupOrder, so that 64 packed bytes of a k-quant (low nibbles, then high nibbles) meet 64
// consecutive qs.
constexpr int kGroupOrder[8] = {0, 2, 1, 3, 4, 6, 5, 7};
struct BlockQ8_256 {
    int8_t qs[256];    // [-127, 127]; groups of 32 in the order kGroupOrder; value = d * qs
    int16_t sums[16];  // sums of 16 elements each, in natural order: fold block minima and offsets
    float d;
    int16_t group_sums[8];  // sums of 32 elements each, in natural order
    uint8_t unused[12];
    // Of each 16 elements, -32 times the sum of those at i % 4 < 2, then of the others: added to the two
    // words of a lane of four products each, it takes an offset of 32 off their weights.
    int16_t minus_32_sums[32];
};
static_assert(sizeof(BlockQ8_256) == 384);  // every block begins on a cache line

// Bytes of one activation row of n_in elements in the given form (n_in a multiple of the form's block),
// rounded up to a multiple of 64.
int64_t act_row_bytes(ActForm form, int64_t n_in);

// ---- matmul
// --------------------------------------------------------------------------------------------------

// out[r, o] (+)= sum_i weight[o, i] * act[r, i] (+ bias[o])   for r in [0, n_rows), o in [out_begin, out_end)
struct MatmulArgs {
    const uint8_t*
        weight;  // (n_out, n_in) in the GGUF block layout, in the mapped file; any alignment of the type
    int64_t row_bytes;  // bytes from one weight row to the next
    int64_t n_in;       // elements of a row, a multiple of the type's block
    int64_t out_begin;  // half-open range of weight rows
    int64_t out_end;
    const uint8_t*
        act;  // (n_rows, n_in) in the form act_form[type]; rows act_stride bytes apart, both multiples of 64
    int64_t act_stride;
    int64_t n_rows;  // any number >= 1; kernels block it themselves
    float* out;      // (n_rows, n_out); element (r, o) at out[r * out_stride + o]
    int64_t out_stride;
    const float* bias;  // (n_out) or nullptr
    bool accumulate;    // true: add to what out holds (residual); false: store
    float* scratch;     // (n_in) floats of this thread, for kernels that expand a row
};
using MatmulFn = void (*)(const MatmulArgs& args);

// ---- attention over KV pages
// ---------------------------------------------------------------------------------

// F32 is for comparing numbers with other programs; the executor runs it on the scalar level only.
enum class KvType : uint32_t { F16 = 0, Q8_0 = 1, F32 = 2 };

// Bytes of one key or value vector as store_kv writes it (head_dim elements; a multiple of 32 for Q8_0).
int64_t kv_row_bytes(KvType type, int64_t head_dim);

// A run is the keys, or the values, of one page, layer and KV head: kernels/attention/kv_layout.h says where
// the elements lie.  place_* put a vector that store_kv wrote at position t of the page.
int64_t kv_run_bytes(KvType type, int64_t head_dim, int64_t page_tokens);
void place_key(const uint8_t* row, uint8_t* run, int64_t t, int64_t head_dim, KvType type);
void place_value(const uint8_t* row, uint8_t* run, int64_t t, int64_t head_dim, int64_t page_tokens,
                 KvType type);

// The context is cut into ranges of this many positions, at multiples of it.  Each range has a softmax of its
// own, and a row's ranges are merged one after the other in order of position.  So what one row gets depends
// on its query and the positions only: not on the rows beside it, nor on who computed which range.
constexpr int64_t kAttentionRange = 256;

// One query row against one KV head, with what the ranges so far gave it.
struct AttentionRow {
    const float* q;  // (group, head_dim)
    float* out;      // (group, head_dim) sum of the values, each times its weight
    float* max;      // (group) largest score
    float* total;    // (group) sum of the weights, exp(score - max)
    int64_t end;     // the row sees positions [begin, end)
    int64_t begin = 0;
};

// Rows that see the same pages against one KV head: all of them share the loaded keys and values.
// score = scale * q . key; out = sum of exp(score - max) * value over positions [begin, end) that the row
// sees.
struct AttentionArgs {
    const AttentionRow* rows;  // (n_rows), any order
    int64_t n_rows;
    int64_t group;  // query heads per KV head
    int64_t head_dim;
    const uint8_t* const*
        k_pages;  // run of page i of the sequence; those with positions in [begin, end) are read
    const uint8_t* const* v_pages;
    int64_t page_tokens;
    int64_t begin;  // a multiple of kAttentionRange
    int64_t end;
    bool fresh;   // begin the rows' states; otherwise go on from what they hold
    bool finish;  // divide by the total at the end: out is then the softmax-weighted mean
    KvType kv_type;
    float scale;
    float* scratch;     // attention_scratch_floats(n_rows, group, head_dim) floats of this thread
    float softcap = 0;  // scores become softcap * tanh(score / softcap); 0: they do not
};
using AttentionFn = void (*)(const AttentionArgs& args);
int64_t attention_scratch_floats(int64_t n_rows, int64_t group, int64_t head_dim);

// The states of one row's ranges, each computed apart from a fresh state, merged in order and finished.  A
// range that the row sees nothing of has a total of zero and is left out.
struct AttentionMerge {
    const float* parts;  // (n_parts, part_stride): out (group, head_dim), max (group), total (group)
    int64_t part_stride;
    int64_t n_parts;  // >= 1
    int64_t group;
    int64_t head_dim;
    int64_t page_tokens;  // as in AttentionArgs: the level that computed the parts merges them
    float* out;           // (group, head_dim)
};
using AttentionMergeFn = void (*)(const AttentionMerge& args);

// ---- the table
// -----------------------------------------------------------------------------------------------

struct Kernels {
    const char* level;  // "scalar"; on x86-64 "avx2", "avxvnni", "avx512vnni"; on arm64 "neon", "neondot"

    // Expands n elements (a multiple of the block) of one weight row to floats.  nullptr: type not a weight
    // type.
    void (*dequantize_row[kMaxTypes])(const uint8_t* row, float* out, int64_t n);

    // How matmul[type] reads its activations, and the matmul itself.
    ActForm act_form[kMaxTypes];
    MatmulFn matmul[kMaxTypes];

    // One whole activation row x (n) to its quantized form at out (act_row_bytes(form, n) bytes, 64-byte
    // aligned); n a multiple of the form's block.  Non-finite input gives d = NaN in its block so that it
    // stays visible.
    void (*quantize_q8_32)(const float* x, uint8_t* out, int64_t n);
    void (*quantize_q8_256)(const float* x, uint8_t* out, int64_t n);

    // out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]; out may be x.
    void (*rms_norm)(const float* x, const float* weight, float* out, int64_t n, float eps);

    // Rotates pairs of x (head_dim) in place by the angles whose cos/sin are given, (n_rot / 2) each.
    // interleaved: pairs (2i, 2i+1), GGUF arch llama;  otherwise pairs (i, i + n_rot/2), qwen2 and qwen3.
    void (*rope)(float* x, const float* cos, const float* sin, int64_t n_rot, bool interleaved);

    // out[i] = (x[i] - mean(x)) / sqrt(variance(x) + eps) * weight[i] + bias[i]; out may be x.
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float* out, int64_t n,
                       float eps);

    // out[i] = silu(gate[i]) * up[i]; out may be gate.
    void (*swiglu)(const float* gate, const float* up, float* out, int64_t n);

    // out[i] = gelu(gate[i]) * up[i] with gelu's tanh form, x / 2 * (1 + tanh(sqrt(2 / pi) (x + 0.044715
    // x^3))); out may be gate.
    void (*geglu)(const float* gate, const float* up, float* out, int64_t n);

    // out[i] = x[i] / 2 * (1 + erf(x[i] / sqrt(2))); out may be x.
    void (*gelu)(const float* x, float* out, int64_t n);

    // x[i] = cap * tanh(scale * x[i] / cap), in place; without a cap (0) x[i] *= scale.
    void (*soft_cap)(float* x, int64_t n, float scale, float cap);

    // One key or value vector (head_dim floats) to its cached form.
    void (*store_kv)(const float* x, uint8_t* out, int64_t head_dim, KvType type);

    AttentionFn attention;
    AttentionMergeFn merge_attention;
};

// The best level of this CPU, or the one that QUANTD_CPU_LEVEL names.  Throws std::invalid_argument on a name
// that is unknown or that this CPU lacks.
const Kernels& kernels_for(const char* level_or_null);

// Names of the levels that this CPU can run, narrowest first; terminated by nullptr.
const char* const* available_levels();

}  // namespace quantd
