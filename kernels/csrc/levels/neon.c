/* The kernels for AArch64 with NEON, which each such processor has. */

#if defined(__aarch64__) && defined(__GNUC__)
#include <arm_neon.h>

#define LEVEL neon
#define LEVEL_HEADER "neon.h"
#define WIDTH 16
#define REGISTERS 32

#include "../kernels.h"

#endif
