#define QUANTD_ENCODE_VECTOR_FLOATS 16
#define QUANTD_ENCODE_TABLE kAvx512Vnni
#define QUANTD_ENCODE_LEVEL "avx512vnni"
#include "kernels/encode/level.h"
