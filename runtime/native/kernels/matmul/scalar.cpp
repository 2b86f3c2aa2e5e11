// Matmul of float weights with float activations: the specification.  Sums are in double, so that this level
// is also the most accurate one.
#include "kernels/levels.h"

namespace quantd::scalar {
namespace {

void store_result(const MatmulArgs& args, int64_t r, int64_t o, double dot) {
    float value = static_cast<float>(dot);
    if (args.bias != nullptr) value += args.bias[o];
    float& out = args.out[r * args.out_stride + o];
    out = args.accumulate ? out + value : value;
}

// Expands each weight row once into the scratch, then meets it with every activation row.
template <auto kDequantize>
void matmul_expanded(const MatmulArgs& args) {
    for (int64_t o = args.out_begin; o < args.out_end; ++o) {
        kDequantize(args.weight + o * args.row_bytes, args.scratch, args.n_in);
        for (int64_t r = 0; r < args.n_rows; ++r) {
            const float* act = reinterpret_cast<const float*>(args.act + r * args.act_stride);
            double dot = 0;
            for (int64_t i = 0; i < args.n_in; ++i) dot += double(args.scratch[i]) * double(act[i]);
            store_result(args, r, o, dot);
        }
    }
}

}  // namespace

void add_matmul(Kernels& table) {
    auto set = [&](Type type, MatmulFn function) {
        table.act_form[static_cast<uint32_t>(type)] = ActForm::F32;
        table.matmul[static_cast<uint32_t>(type)] = function;
    };
    set(Type::F32, matmul_expanded<dequantize_f32>);
    set(Type::F16, matmul_expanded<dequantize_f16>);
    set(Type::BF16, matmul_expanded<dequantize_bf16>);
}

}  // namespace quantd::scalar
