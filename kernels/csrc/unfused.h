/* Include this first. Products and sums are then rounded one by one, never fused, so that torch's operations in the
   same order have the same bits. */

#ifndef PENSTOCK_UNFUSED_H
#define PENSTOCK_UNFUSED_H

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#endif
