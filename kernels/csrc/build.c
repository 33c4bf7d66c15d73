/* The build of these kernels and what this processor can run, for native.py. */

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif

/* "gcc 12.2.0" or "clang 14.0.6 ...". */
const char *penstock_compiler(void)
{
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "another compiler";
#endif
}

/* The version of OpenMP. If 0, every kernel runs on the thread that calls it. */
int penstock_openmp(void)
{
#ifdef _OPENMP
    return _OPENMP;
#else
    return 0;
#endif
}

#if defined(__x86_64__) && defined(__GNUC__)

static int has_f16c(void)
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}

/* The features of levels/avx2.c. Not every compiler knows the name of F16C. */
static int runs_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("popcnt") && has_f16c();
}

/* The features of levels/avx512.c. */
static int runs_avx512(void)
{
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni");
}

/* Whether the kernels of a level were compiled and run on this processor. */
int penstock_runs(const char *level)
{
    return !strcmp(level, "plain") || (!strcmp(level, "avx2") && runs_avx2()) ||
           (!strcmp(level, "avx512") && runs_avx512());
}

/* Whether feature `number` is present: 1 or 0, -1 past the last. `name` receives its name, as in /proc/cpuinfo. */
int penstock_feature(int number, const char **name)
{
#define FEATURE(there, text)                                                                                           \
    case there:                                                                                                        \
        *name = text;                                                                                                  \
        return __builtin_cpu_supports(text) != 0;
    switch (number) {
        FEATURE(0, "avx2")
        FEATURE(1, "avx512bw")
        FEATURE(2, "avx512vl")
        FEATURE(3, "avx512dq")
        FEATURE(4, "avx512bf16")
        FEATURE(5, "avx512vbmi")
        FEATURE(6, "avx512vbmi2")
        FEATURE(7, "avx512vnni")
    }
    return -1;
}

#else

/* As above: each AArch64 processor has NEON. */
int penstock_runs(const char *level)
{
#if defined(__aarch64__) && defined(__GNUC__)
    if (!strcmp(level, "neon"))
        return 1;
#endif
    return !strcmp(level, "plain");
}

int penstock_feature(int number, const char **name)
{
    (void)number, (void)name;
    return -1;
}

#endif
