/* The kernels for x86-64 with AVX-512 with bfloat16: Zen 4, Sapphire Rapids and later. */

#if defined(__x86_64__) && defined(__GNUC__)
#include "../target.h"
#include <immintrin.h>

#define LEVEL avx512
#define LEVEL_HEADER "avx512.h"
#define WIDTH 64
#define REGISTERS 32

BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vbmi,avx512vbmi2,avx512vnni,fma,f16c,bmi2,popcnt")
#include "../kernels.h"
END_TARGET

#endif
