// Rotary position embedding of one head: the specification.
#include "kernels/levels.h"

namespace quantd::scalar {
namespace {

void rope(float* x, const float* cos, const float* sin, int64_t n_rot, bool interleaved) {
    const int64_t half = n_rot / 2;
    for (int64_t i = 0; i < half; ++i) {
        float& a = interleaved ? x[2 * i] : x[i];
        float& b = interleaved ? x[2 * i + 1] : x[i + half];
        const float old_a = a, old_b = b;
        a = old_a * cos[i] - old_b * sin[i];
        b = old_a * sin[i] + old_b * cos[i];
    }
}

}  // namespace

void add_rope(Kernels& table) { table.rope = rope; }

}  // namespace quantd::scalar
