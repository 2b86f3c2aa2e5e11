// With AVX-VNNI, which adds up the products of q8_0 keys and queries in one instruction for two: see avx2.h.
// Not measured on hardware.
#define QUANTD_LEVEL avxvnni
#include "kernels/attention/avx2.h"
