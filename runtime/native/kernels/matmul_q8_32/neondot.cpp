// On ARM CPUs with the dot-product instructions: see neon.h.
#define QUANTD_LEVEL neondot
#include "kernels/matmul_q8_32/neon.h"
