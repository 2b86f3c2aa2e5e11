#define QUANTD_ENCODE_VECTOR_FLOATS 8
#define QUANTD_FEEDBACK_TABLE kAvx2
#include "kernels/feedback/level.h"
