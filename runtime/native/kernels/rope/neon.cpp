// Rotary position embedding of one head, 128 bits wide.
#include "kernels/levels.h"
#include "kernels/neon.h"

namespace quantd::neon {
namespace {

struct Pair {
    float32x4_t a, b;
};

Pair rotate(float32x4_t a, float32x4_t b, const float* cos, const float* sin) {
    const float32x4_t c = vld1q_f32(cos), s = vld1q_f32(sin);
    return {vfmsq_f32(vmulq_f32(a, c), b, s), vfmaq_f32(vmulq_f32(b, c), a, s)};
}

void rope(float* x, const float* cos, const float* sin, int64_t n_rot, bool interleaved) {
    const int64_t half = n_rot / 2;
    int64_t i = 0;
    for (; i + 4 <= half; i += 4) {
        if (interleaved) {
            const float32x4x2_t pairs = vld2q_f32(x + 2 * i);
            const Pair turned = rotate(pairs.val[0], pairs.val[1], cos + i, sin + i);
            vst2q_f32(x + 2 * i, {{turned.a, turned.b}});
        } else {
            const Pair turned = rotate(vld1q_f32(x + i), vld1q_f32(x + i + half), cos + i, sin + i);
            vst1q_f32(x + i, turned.a);
            vst1q_f32(x + i + half, turned.b);
        }
    }
    for (; i < half; ++i) {
        float& a = interleaved ? x[2 * i] : x[i];
        float& b = interleaved ? x[2 * i + 1] : x[i + half];
        const float old_a = a, old_b = b;
        a = old_a * cos[i] - old_b * sin[i];
        b = old_a * sin[i] + old_b * cos[i];
    }
}

}  // namespace

void add_rope(Kernels& table) { table.rope = rope; }

}  // namespace quantd::neon
