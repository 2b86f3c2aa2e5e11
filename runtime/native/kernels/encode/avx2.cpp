#define QUANTD_ENCODE_VECTOR_FLOATS 8
#define QUANTD_ENCODE_TABLE kAvx2
#define QUANTD_ENCODE_LEVEL "avx2"
#include "kernels/encode/level.h"
