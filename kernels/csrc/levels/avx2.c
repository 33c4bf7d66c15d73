/* The kernels for x86-64 with AVX2, FMA and F16C: laptops since 2013. */

#if defined(__x86_64__) && defined(__GNUC__)
#include "../target.h"
#include <immintrin.h>

#define LEVEL avx2
#define LEVEL_HEADER "avx2.h"
#define WIDTH 32
#define REGISTERS 16

BEGIN_TARGET("avx2,fma,f16c,bmi2,popcnt")
#include "../kernels.h"
END_TARGET

#endif
