// The float mode that results depend on.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace quantd {

// Subnormal numbers count: a library that switched flush-to-zero on in the calling thread must not change the
// bytes.
class DefaultFloatMode {
  public:
#if defined(__x86_64__)
    DefaultFloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~DefaultFloatMode() { _mm_setcsr(saved_); }

  private:
    unsigned saved_;
#elif defined(__aarch64__)
    DefaultFloatMode() : saved_(__builtin_aarch64_get_fpcr()) { __builtin_aarch64_set_fpcr(0); }
    ~DefaultFloatMode() { __builtin_aarch64_set_fpcr(saved_); }

  private:
    unsigned saved_;
#endif
};

}  // namespace quantd
