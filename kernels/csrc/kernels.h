/* All kernels of one level. A file of levels/ includes this, within the instructions of that level, after it has
   defined LEVEL, LEVEL_HEADER, WIDTH (bytes of a register) and REGISTERS. EXPORT(name) is the name that Python loads:
   penstock_name_avx2. */

#define EXPORT(NAME) EXPORT_AT(NAME, LEVEL)
#define EXPORT_AT(NAME, AT) EXPORT_NAMED(NAME, AT)
#define EXPORT_NAMED(NAME, AT) penstock_##NAME##_##AT

#include <math.h>

#include "bfloat16.h"
#include "vectors/vectors.h"

#ifdef PENSTOCK_ONE /* the fuzzer compiles one at a time */
#include PENSTOCK_ONE
#else
#include "products/weighted_sum.h"
#include "products/bfloat16.h"
#include "products/turned.h"
#include "formats/int8.h"
#include "formats/int4.h"
#include "formats/nested.h"
#include "formats/blocks.h"
#include "formats/lossless.h"
#include "formats/transpose.h"
#include "formats/quantise_int8.h"
#include "formats/quantise_int4.h"
#include "formats/nest.h"
#include "kv/attention.h"
#include "kv/page_masses.h"
#include "kv/quantised.h"
#include "kv/bounds.h"
#include "modules/attention_row.h"
#include "modules/rms_norm.h"
#include "modules/rotary.h"
#endif
