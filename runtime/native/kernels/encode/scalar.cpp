#define QUANTD_ENCODE_VECTOR_FLOATS 4
#define QUANTD_ENCODE_TABLE kScalar
#define QUANTD_ENCODE_LEVEL "scalar"
#include "kernels/encode/level.h"
