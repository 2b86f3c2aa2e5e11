// Norms, activations and caps: the specification.
#include <cmath>

#include "kernels/levels.h"

namespace quantd::scalar {
namespace {

void rms_norm(const float* x, const float* weight, float* out, int64_t n, float eps) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += double(x[i]) * double(x[i]);
    const float scale = 1.0f / std::sqrt(static_cast<float>(sum / double(n)) + eps);
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void swiglu(const float* gate, const float* up, float* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const float silu = gate[i] / (1.0f + std::exp(-gate[i]));
        out[i] = silu * up[i];
    }
}

void layer_norm(const float* x, const float* weight, const float* bias, float* out, int64_t n, float eps) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += double(x[i]);
    const double mean = sum / double(n);
    double squares = 0;
    for (int64_t i = 0; i < n; ++i) squares += (double(x[i]) - mean) * (double(x[i]) - mean);
    const float scale = 1.0f / std::sqrt(static_cast<float>(squares / double(n)) + eps);
    for (int64_t i = 0; i < n; ++i) out[i] = (x[i] - static_cast<float>(mean)) * scale * weight[i] + bias[i];
}

void geglu(const float* gate, const float* up, float* out, int64_t n) {
    constexpr float kTwice = 1.59576912160573071f;  // 2 sqrt(2 / pi): (1 + tanh(y)) / 2 = 1 / (1 + exp(-2 y))
    for (int64_t i = 0; i < n; ++i) {
        const float x = gate[i];
        out[i] = x / (1.0f + std::exp(-kTwice * (x + 0.044715f * x * x * x))) * up[i];
    }
}

void gelu(const float* x, float* out, int64_t n) {
    constexpr float kRoot = 0.707106781186547524f;  // sqrt(1 / 2)
    for (int64_t i = 0; i < n; ++i) out[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * kRoot));
}

void soft_cap(float* x, int64_t n, float scale, float cap) {
    for (int64_t i = 0; i < n; ++i) {
        const float scaled = x[i] * scale;
        x[i] = cap > 0 ? cap * std::tanh(scaled / cap) : scaled;
    }
}

}  // namespace

void add_elementwise(Kernels& table) {
    table.rms_norm = rms_norm;
    table.swiglu = swiglu;
    table.layer_norm = layer_norm;
    table.geglu = geglu;
    table.gelu = gelu;
    table.soft_cap = soft_cap;
}

}  // namespace quantd::scalar
