#define QUANTD_ENCODE_VECTOR_FLOATS 16
#define QUANTD_FEEDBACK_TABLE kAvx512Vnni
#include "kernels/feedback/level.h"
