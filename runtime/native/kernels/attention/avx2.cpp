// With AVX2: see avx2.h.
#define QUANTD_LEVEL avx2
#include "kernels/attention/avx2.h"
