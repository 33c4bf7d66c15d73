"""Where the planes of encoded matrices lie in a bundle."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from ....kernels.formats.base import UnsuitableShape
from ....kernels.formats.registry import FORMATS
from ....tiering.store.bundle.manifest import TENSOR_ALIGNMENT, Block, Packing, TensorSpec
from ....tiering.units import BlockId
from ...checkpoints.layout import Layout, lay_out_again
from .formats import Choice, Key, of_matrix, shape_of

_EQUAL = 1.02
"""What equal lengths may cost, relative to the sum of the lengths, where a format's depend on the numbers."""

Shape = tuple[int, ...]
Planes = tuple[int, ...]
"""Bytes of each plane of a matrix."""

Lengths = Callable[[TensorSpec, int | None, Choice], Planes]
"""Tells the bytes of a matrix's planes (of an expert's, with its number) where its format cannot."""

_Matrix = tuple[BlockId, str]
"""A matrix by its block and its name."""


@dataclass(slots=True)
class _Known:
    """The bytes of planes, by matrix, and what had to stay as it is, in words."""

    planes: dict[_Matrix, Planes] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)


def encode_layout(
    layout: Layout,
    chosen: Mapping[Key, Choice],
    lengths: Lengths,
    advance: Callable[[int], None] = lambda _: None,
    *,
    equal: bool = True,
    expect: Callable[[Sequence[Block]], None] = lambda _: None,
) -> tuple[Layout, tuple[str, ...]]:
    """``layout`` with the matrices in ``chosen`` encoded, and what had to stay as it is, in words.

    Where ``lengths`` differ little, matrices of one shape have room for the longest, unless ``equal`` is false.
    ``advance`` is told the bytes of each block that is done, and ``expect`` at first the blocks, with nothing but their
    matrices that ``lengths`` will be asked for, packed. Further planes of a block lie in blocks of their own,
    right behind it: a read of all planes is one read.
    """
    expect(_unknown(layout, chosen))
    known = _find_planes(layout, chosen, lengths, advance, equal=equal)
    blocks: list[Block] = []
    for block in layout.blocks:
        stored: list[TensorSpec] = []
        further: dict[int, list[TensorSpec]] = {}
        for spec in block.tensors:
            planes = known.planes.get((block.id, spec.name))
            if planes is None:
                stored.append(spec)
                continue
            choice, address = of_matrix(chosen, spec.name, block.id.expert), spec.offset % TENSOR_ALIGNMENT
            assert choice is not None
            for plane, length in enumerate(planes):
                packing = Packing(choice.format, plane, choice.transposed, address)
                made = replace(spec, offset=0, length=length, packing=packing)
                (further.setdefault(plane, []) if plane else stored).append(made)
        blocks.append(replace(block, tensors=tuple(stored)))
        for plane, specs in further.items():
            blocks.append(replace(block, id=block.id.residual(plane), tensors=tuple(specs)))
    return replace(layout, blocks=lay_out_again(blocks)), tuple(known.notes)


def _unknown(layout: Layout, chosen: Mapping[Key, Choice]) -> list[Block]:
    """Blocks with those matrices alone whose lengths only their numbers tell."""
    found = []
    for block in layout.blocks:
        specs = []
        for spec in block.tensors:
            choice = of_matrix(chosen, spec.name, block.id.expert)
            with suppress(UnsuitableShape):
                if choice and FORMATS[choice.format].lengths(*shape_of(spec, choice)) is None:
                    specs.append(replace(spec, packing=Packing(choice.format, transposed=choice.transposed)))
        if specs:
            found.append(replace(block, tensors=tuple(specs)))
    return found


def _find_planes(
    layout: Layout,
    chosen: Mapping[Key, Choice],
    lengths: Lengths,
    advance: Callable[[int], None],
    *,
    equal: bool,
) -> _Known:
    known = _Known()
    alike: dict[tuple[str, Shape], list[_Matrix]] = {}
    for block in layout.blocks:
        for spec in block.tensors:
            if choice := of_matrix(chosen, spec.name, block.id.expert):
                format_, key = FORMATS[choice.format], (block.id, spec.name)
                try:
                    told = format_.lengths(*shape_of(spec, choice))
                    known.planes[key] = (told or lengths(spec, block.id.expert, choice))[: choice.planes]
                except UnsuitableShape as error:
                    known.notes.setdefault(f"{_name(block.id)} {list(spec.shape)} is stored as it is: {error}")
                    continue
                if told is None and equal:
                    alike.setdefault((choice.format, spec.shape), []).append(key)
        advance(block.extent.length)
    for keys in alike.values():
        _make_equal(known.planes, keys)
    return known


def _make_equal(planes: dict[_Matrix, Planes], keys: Sequence[_Matrix]) -> None:
    """Give all matrices of ``keys`` the room of the largest, if that takes few bytes: equal blocks fill equal slots."""
    longest = tuple(map(max, zip(*(planes[key] for key in keys), strict=True)))
    if sum(longest) * len(keys) <= _EQUAL * sum(sum(planes[key]) for key in keys):
        planes.update(dict.fromkeys(keys, longest))


def _name(block: BlockId) -> str:
    return f"each expert of {block.module}" if block.kind == "expert" else block.module
