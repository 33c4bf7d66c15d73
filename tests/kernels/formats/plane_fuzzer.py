"""Random planes, damaged at random: what passes the check on arrival is decoded and multiplied, and both agree.

What does not pass is decoded and multiplied too: kernels stay inside of it, whatever it says. Planes and results end
where a page begins that nobody may touch, so whoever does not stay inside is killed.
``python -m tests.kernels.formats.plane_fuzzer FIRST COUNT`` plays cases.
"""

import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from penstock.kernels.formats.base import Format, UnsuitableShape
from penstock.kernels.formats.blocks import Blocks
from penstock.kernels.formats.planes import check_planes, find_fault, locate
from penstock.kernels.formats.registry import FORMATS
from tests.support.guarded import Guarded

Planes = tuple[torch.Tensor, ...]

ROWS = (16, 17, 33, 64, 100, 130)
COLUMNS = (32, 64, 96, 128, 256, 512)
NUMBERS = (0, 1, -1, 7, 2**31 - 1, -(2**31), 2**32 - 1, 2**62, 2**63 - 1, -(2**63))
"""What an index, a count or an offset may say."""
BITS = (0xFFFF, 0x7FC0, 0x7F80, 0xFF80, 0x7C00, 0xFC00, 0x7F7F, 0x0001, 0x0000)
"""Bits of NaNs, infinities, the largest and the least numbers of 16 bits."""
PAGES = 96


def good_planes(format_: Format, n: int, k: int, dice: random.Random) -> Planes:
    """Planes of a random matrix [n, k]. Raises UnsuitableShape."""
    chance = torch.Generator().manual_seed(dice.getrandbits(32))
    if not isinstance(format_, Blocks):
        return format_.encode([torch.randn(n, k, generator=chance).bfloat16()], n, k)
    plane = torch.randint(0, 256, format_.lengths(n, k), dtype=torch.uint8, generator=chance)
    if format_.ordered:
        at, size = format_.locate_part(-1, n, k)
        plane[at : at + size] = torch.randperm(k, generator=chance).int().view(torch.uint8)
    return (plane,)


def damaged(format_: Format, planes: Planes, n: int, k: int, dice: random.Random) -> Planes:
    """``planes`` after up to eight changes, most of them where a kernel finds its way."""
    found = [plane.clone() for plane in planes]
    for _ in range(dice.choice((0, 1, 1, 2, 8))):
        plane = dice.choice(found)
        if not len(plane):
            continue
        at = _place(format_, plane, n, k, dice)
        match dice.choice(("byte", "word", "bits", "run", "copy", "all", "cut", "longer")):
            case "byte":
                plane[at] = dice.randrange(256)
            case "word":
                size = dice.choice((4, 8))
                value = dice.choice((*NUMBERS, k, k - 1, len(plane), dice.randrange(2 * len(plane))))
                _write(plane, at // size * size, value % 2 ** (8 * size), size)
            case "bits":
                _write(plane, at // 2 * 2, dice.choice(BITS), 2)
            case "run":
                plane[at : at + dice.randrange(1, 64)] = dice.randrange(256)
            case "copy":
                source, size = dice.randrange(len(plane)), min(dice.randrange(1, 64), len(plane) - at)
                piece = plane[source : source + size].clone()
                plane[at : at + len(piece)] = piece
            case "all" if dice.random() < 0.2:
                chance = torch.Generator().manual_seed(dice.getrandbits(32))
                plane.copy_(torch.randint(0, 256, (len(plane),), dtype=torch.uint8, generator=chance))
            case "cut" if dice.random() < 0.3:
                found = [part[:at] if part is plane else part for part in found]
            case "longer" if dice.random() < 0.3:
                more = torch.randint(0, 256, (dice.randrange(1, 200),), dtype=torch.uint8)
                found = [torch.cat([part, more]) if part is plane else part for part in found]
    return tuple(found)


def _place(format_: Format, plane: torch.Tensor, n: int, k: int, dice: random.Random) -> int:
    """A place in ``plane``: often one that says where something is."""
    if dice.random() < 0.6 and not format_.any_bytes:
        if isinstance(format_, Blocks):
            at, size = format_.locate_part(-1, n, k)
        elif dice.random() < 0.5:
            at, size = 0, 8 * (n // 16)
        else:  # the head of the first tile
            at, size = 8 * (n // 16), 20
        return min(at + dice.randrange(size), len(plane) - 1)
    return dice.randrange(len(plane))


def _write(plane: torch.Tensor, at: int, value: int, size: int) -> None:
    data = torch.tensor([*value.to_bytes(size, "little")], dtype=torch.uint8)[: len(plane) - at]
    plane[at : at + len(data)] = data


def agree(out: torch.Tensor, numbers: torch.Tensor, state: torch.Tensor) -> bool:
    """Whether ``out`` is ``state`` [rows, k] times the decoded ``numbers`` [n, k], where none of them is absurd."""
    wanted = state.double() @ numbers.double().t()
    largest = numbers.double().abs().amax(1)
    sums = state.double().abs().sum(1, keepdim=True)
    known = (largest < 1e30).expand_as(wanted)
    slack = 2**-8 * wanted.abs() + 2e-4 * sums * largest + 1e-34
    return bool(((out.double() - wanted).abs() <= slack)[known].all())


def play(seed: int) -> str:
    """Play one case. Returns what came of it: "refused" for its lengths, "found", or "computed"."""
    dice = random.Random(seed)
    name = dice.choice((*FORMATS, *("lossless",) * 8, *("uint4-32-ordered", "uint4-row-ordered") * 4))
    format_, n, k = FORMATS[name], dice.choice(ROWS), dice.choice(COLUMNS)
    try:
        planes = damaged(format_, good_planes(format_, n, k, dice), n, k, dice)
    except UnsuitableShape:
        return "no such shape"
    planes = planes[: dice.randint(1, len(planes))]
    if _says(format_, lambda: check_planes(format_, n, k, tuple(map(len, planes)))):
        out = torch.empty(n, k, dtype=torch.bfloat16)
        assert _says(format_, lambda: format_.decode(planes, n, k, slice(0, n), out))
        assert _says(format_, lambda: locate(format_, planes, n, k))
        return "refused"
    rooms = [Guarded(PAGES) for _ in planes]
    try:
        placed = [room.put(plane, 64) for room, plane in zip(rooms, planes, strict=True)]
        return _compute(format_, placed, n, k, dice)
    finally:
        for room in rooms:
            room.close()


def _says(format_: Format, check: Callable[[], object]) -> bool:
    """Whether ``check`` refuses, in words that name the format."""
    try:
        check()
    except ValueError as error:
        return format_.name in str(error)
    return False


def _compute(format_: Format, planes: Sequence[torch.Tensor], n: int, k: int, dice: random.Random) -> str:
    at_once = dice.choice((None, None, 1, 5000, 20_000))
    faults = [_fault(format_, number, plane, n, k, at_once) for number, plane in enumerate(planes)]
    good = not any(faults)
    dtype = torch.bfloat16 if format_.exact else dice.choice((torch.bfloat16, torch.float32, torch.float16))
    with Guarded(PAGES) as room:
        out = room.room(n * k * dtype.itemsize).view(dtype).view(n, k)
        rows = dice.choice((1, 3, 4, 9, 16))
        state = torch.randn(rows, k, generator=torch.Generator().manual_seed(dice.getrandbits(32))).bfloat16()
        try:
            format_.decode(planes, n, k, slice(0, n), out)
            product = format_.find_product(rows, n, k)
            made = None if product is None else product([locate(format_, planes, n, k)], [state.data_ptr()])[0]
        except ValueError:
            assert not good, "what passed the check is refused later"
            return "found"
    if good and made is not None:
        whole = torch.empty(n, k, dtype=torch.bfloat16 if format_.exact else torch.float32)
        format_.decode(planes, n, k, slice(0, n), whole)
        assert agree(made, whole, state), f"{format_.name} [{n}, {k}]"
    return "computed" if good else "found"


def _fault(format_: Format, number: int, plane: torch.Tensor, n: int, k: int, at_once: int | None) -> str | None:
    def read(start: int, length: int) -> torch.Tensor:
        assert 0 <= start <= start + length <= len(plane), "the check reads outside of the plane"
        return plane[start : start + length]

    return find_fault(format_, number, n, k, len(plane), read, at_once)


def main(first: int, count: int) -> None:
    """Play ``count`` cases from ``first`` on, and print what came of them."""
    counts: Counter[str] = Counter()
    for seed in range(first, first + count):
        try:
            counts[play(seed)] += 1
        except BaseException:
            print(f"case {seed}", file=sys.stderr, flush=True)
            raise
    print(dict(counts))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
