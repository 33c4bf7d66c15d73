/* The kernels in plain C, for any processor. */

#define LEVEL plain
#define LEVEL_HEADER "plain.h"
#define WIDTH 16
#define REGISTERS 16

#include "../kernels.h"
