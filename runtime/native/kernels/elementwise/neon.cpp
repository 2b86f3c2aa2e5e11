// Norms, gated activations and caps, 128 bits wide.  gelu's erf is the scalar level's.
#include <math.h>

#include "kernels/levels.h"
#include "kernels/neon.h"

namespace quantd::neon {
namespace {

// Elements [i, i + 4) of x (n), zeros from n on.
float32x4_t load(const float* x, int64_t i, int64_t n) {
    if (i + 4 <= n) return vld1q_f32(x + i);
    float lanes[4] = {};
    __builtin_memcpy(lanes, x + i, static_cast<std::size_t>(n - i) * sizeof(float));
    return vld1q_f32(lanes);
}

void store(float* out, int64_t i, int64_t n, float32x4_t value) {
    if (i + 4 <= n) return vst1q_f32(out + i, value);
    float lanes[4];
    vst1q_f32(lanes, value);
    __builtin_memcpy(out + i, lanes, static_cast<std::size_t>(n - i) * sizeof(float));
}

void rms_norm(const float* x, const float* weight, float* out, int64_t n, float eps) {
    float32x4_t sums[2] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
    for (int64_t i = 0; i < n; i += 4) {
        const float32x4_t value = load(x, i, n);
        sums[i / 4 % 2] = vfmaq_f32(sums[i / 4 % 2], value, value);
    }
    const float mean = vaddvq_f32(vaddq_f32(sums[0], sums[1])) / static_cast<float>(n);
    const float scale = 1.0f / sqrtf(mean + eps);
    for (int64_t i = 0; i < n; i += 4) {
        store(out, i, n, vmulq_f32(vmulq_n_f32(load(x, i, n), scale), load(weight, i, n)));
    }
}

void layer_norm(const float* x, const float* weight, const float* bias, float* out, int64_t n, float eps) {
    float32x4_t sum = vdupq_n_f32(0.0f);
    for (int64_t i = 0; i < n; i += 4) sum = vaddq_f32(sum, load(x, i, n));
    const float mean = vaddvq_f32(sum) / static_cast<float>(n);
    float32x4_t squares = vdupq_n_f32(0.0f);
    for (int64_t i = 0; i < n; i += 4) {
        float lanes[4];
        vst1q_f32(lanes, vsubq_f32(load(x, i, n), vdupq_n_f32(mean)));
        for (int64_t lane = n - i; lane < 4; ++lane) lanes[lane] = 0.0f;  // past the end
        const float32x4_t from_mean = vld1q_f32(lanes);
        squares = vfmaq_f32(squares, from_mean, from_mean);
    }
    const float scale = 1.0f / sqrtf(vaddvq_f32(squares) / static_cast<float>(n) + eps);
    for (int64_t i = 0; i < n; i += 4) {
        const float32x4_t normed = vmulq_n_f32(vsubq_f32(load(x, i, n), vdupq_n_f32(mean)), scale);
        store(out, i, n, vfmaq_f32(load(bias, i, n), normed, load(weight, i, n)));
    }
}

// x / (1 + exp(minus_y)) * up
float32x4_t gated(float32x4_t x, float32x4_t minus_y, float32x4_t up) {
    return vmulq_f32(vdivq_f32(x, vaddq_f32(vdupq_n_f32(1.0f), vector_exp(minus_y))), up);
}

void swiglu(const float* gate, const float* up, float* out, int64_t n) {
    for (int64_t i = 0; i < n; i += 4) {
        const float32x4_t x = load(gate, i, n);
        store(out, i, n, gated(x, vnegq_f32(x), load(up, i, n)));
    }
}

void geglu(const float* gate, const float* up, float* out, int64_t n) {
    constexpr float kMinusTwice = -1.59576912160573071f;  // -2 sqrt(2 / pi)
    for (int64_t i = 0; i < n; i += 4) {
        const float32x4_t x = load(gate, i, n);
        const float32x4_t cubic = vmulq_f32(vmulq_f32(x, x), vmulq_n_f32(x, 0.044715f));
        store(out, i, n, gated(x, vmulq_n_f32(vaddq_f32(x, cubic), kMinusTwice), load(up, i, n)));
    }
}

void soft_cap(float* x, int64_t n, float scale, float cap) {
    const float factor = cap > 0 ? scale / cap : scale;
    for (int64_t i = 0; i < n; i += 4) {
        float32x4_t value = vmulq_n_f32(load(x, i, n), factor);
        if (cap > 0) value = vmulq_n_f32(vector_tanh(value), cap);
        store(x, i, n, value);
    }
}

}  // namespace

void add_elementwise(Kernels& table) {
    table.rms_norm = rms_norm;
    table.swiglu = swiglu;
    table.layer_norm = layer_norm;
    table.geglu = geglu;
    table.soft_cap = soft_cap;
}

}  // namespace quantd::neon
