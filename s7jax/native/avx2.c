/* The engine for x86-64-v3 (Haswell, Zen). */
#if defined(__x86_64__)
#define S7_AVX2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,lzcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi,bmi2,lzcnt")
#endif
#include "layers.h"
const Kernels s7_avx2 = {"avx2", trunk, expert, head};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int s7_not_x86;
#endif
