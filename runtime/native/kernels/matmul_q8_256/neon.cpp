// On every 64-bit ARM CPU: see neon.h.
#define QUANTD_LEVEL neon
#include "kernels/matmul_q8_256/neon.h"
