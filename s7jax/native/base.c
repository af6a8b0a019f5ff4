/* The engine in plain C. */
#include "layers.h"
const Kernels s7_base = {"base", trunk, expert, head};
