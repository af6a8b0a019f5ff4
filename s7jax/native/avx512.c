/* The engine for x86-64 with AVX-512 VNNI (Ice Lake, Zen 4). */
#if defined(__x86_64__)
#define S7_AVX512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,lzcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi,bmi2,lzcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#endif
#include "layers.h"
const Kernels s7_avx512 = {"avx512", trunk, expert, head};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int s7_not_x86;
#endif
