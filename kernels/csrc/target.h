/* BEGIN_TARGET("avx2,fma") ... END_TARGET compile the functions in between for processors with these features. */

#ifndef PENSTOCK_TARGET_H
#define PENSTOCK_TARGET_H

#define PENSTOCK_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define BEGIN_TARGET(features)                                                                                         \
    PENSTOCK_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define END_TARGET PENSTOCK_PRAGMA(clang attribute pop)
#else
#define BEGIN_TARGET(features) PENSTOCK_PRAGMA(GCC push_options) PENSTOCK_PRAGMA(GCC target(features))
#define END_TARGET PENSTOCK_PRAGMA(GCC pop_options)
#endif

#endif
