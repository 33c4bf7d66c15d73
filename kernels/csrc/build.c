/* The build of these kernels and the features of this processor, for describe() in native.py. */

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

int penstock_feature(int number, const char **name)
{
    (void)number, (void)name;
    return -1;
}

#endif
