"""A product and a sum, rounded once in plain C: the same bits as a fused operation of the processor."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = r"""
#define LEVEL_HEADER "plain.h"
#define WIDTH 16
#include <math.h>
#include <stdio.h>
#include "kernels/csrc/vectors/vectors.h"

static uint64_t state = 88172645463325252ull;

static uint32_t any(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

static float with_bits(uint32_t bits)
{
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

int main(void)
{
    long bad = 0, twice = 0;
    for (long round = 0; round < 100000; round++) {
        float a[LANES], b[LANES], c[LANES], found[LANES];
        for (int i = 0; i < LANES; i++) {
            a[i] = with_bits(any());
            b[i] = with_bits(any());
            c[i] = with_bits(any());
            if (round % 2) { /* half a unit in the last place of c, and a little more or less */
                a[i] = with_bits(0x3f800001);
                b[i] = (any() % 2 ? 1.0f : -1.0f) * (0x1p-24f - (any() % 2 ? 0x1p-47f : 0x1p-48f));
                c[i] = with_bits(0x3f800000 | (any() & 0x807fffff));
            }
        }
        f_store(found, f_fma_once(f_load(a), f_load(b), f_load(c)));
        for (int i = 0; i < LANES; i++) {
            const float wanted = fmaf(a[i], b[i], c[i]), doubled = (float)((double)a[i] * b[i] + c[i]);
            const int none = isnan(wanted) && isnan(found[i]);
            bad += !none && memcmp(&wanted, &found[i], sizeof wanted) != 0;
            twice += wanted > doubled || wanted < doubled;
        }
    }
    printf("%ld %ld", bad, twice);
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_plain_c_rounds_once(tmp_path: Path) -> None:
    source, program = tmp_path / "fused.c", tmp_path / "fused"
    source.write_text(PROGRAM)
    flags = ["-O2", "-ffp-contract=off", "-Wno-psabi", f"-I{ROOT}"]
    subprocess.run(["cc", *flags, str(source), "-o", str(program), "-lm"], check=True, timeout=120)
    bad, twice = map(int, subprocess.run([program], check=True, capture_output=True, timeout=60).stdout.split())
    assert bad == 0
    assert twice > 1000  # rounding twice errs there
