#define QUANTD_ENCODE_VECTOR_FLOATS 4
#define QUANTD_FEEDBACK_TABLE kScalar
#include "kernels/feedback/level.h"
