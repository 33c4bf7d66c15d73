"""Lengths of encoded matrices that depend on their numbers: found out once, kept while a bundle is written."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from ....kernels.formats.registry import FORMATS
from ....kernels.io.regular import open_regular
from ....tiering.driving.small_files import make_folder, read_small
from ....tiering.driving.strict_json import items, many, parse_json, text, whole
from ....tiering.store.bundle.drive_writer import translate_errors
from ....tiering.store.bundle.journal import LENGTHS
from ....tiering.store.bundle.manifest import Block, TensorSpec
from ..arrange.formats import Choice
from ..arrange.planes import Lengths, Planes

_LARGEST = 64 << 20
"""Most bytes of lengths: a line has a hundred, and there is one for each matrix."""


class KeptLengths:
    """Remembers what ``lengths``, which encodes a matrix, has told. It also knows what an interrupted packing has kept
    in ``folder``, that of the bundle that is being written. For one thread at a time."""

    def __init__(self, folder: Path, lengths: Lengths) -> None:
        self._path, self._lengths = folder / LENGTHS, lengths
        self._known: dict[tuple[str, int | None, str], Planes] = {}
        self._file: IO[str] | None = None
        with suppress(OSError, ValueError):  # a line that a crash tore ends what is known
            for line in read_small(self._path, _LARGEST, follow=False).splitlines():
                key, planes = _parse(line)
                self._known[key] = planes

    def __call__(self, spec: TensorSpec, expert: int | None, choice: Choice) -> Planes:
        """Bytes of each plane. Raises what ``lengths`` raises, FlashFull or BundleError when they cannot be kept."""
        key = spec.name, expert, choice.format
        if not self._knows(key):
            self._known[key] = self._lengths(spec, expert, choice)
            with translate_errors(self._path.parent):
                self._keep(key)
        return self._known[key]

    def unknown(self, blocks: Sequence[Block]) -> list[Block]:
        """``blocks`` with those of their packed matrices alone of which nothing is known yet."""
        found = []
        for block in blocks:
            specs = tuple(
                spec
                for spec in block.tensors
                if spec.packing and not self._knows((spec.name, block.id.expert, spec.packing.format))
            )
            if specs:
                found.append(replace(block, tensors=specs))
        return found

    def close(self) -> None:
        """Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _knows(self, key: tuple[str, int | None, str]) -> bool:
        return len(self._known.get(key, ())) == FORMATS[key[2]].planes

    def _keep(self, *keys: tuple[str, int | None, str]) -> None:
        if self._file is None:  # anew, without what a crash has torn
            make_folder(self._path.parent)
            self._path.unlink(missing_ok=True)  # whatever it is: a link would have another file written
            descriptor = open_regular(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, follow=False)
            self._file = open(descriptor, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by close
            keys = tuple(self._known)
        for key in keys:
            self._file.write(json.dumps([*key, self._known[key]], separators=(",", ":")) + "\n")


def _parse(line: bytes) -> tuple[tuple[str, int | None, str], Planes]:
    """A tensor, its expert and format, and the bytes of its planes. Raises ValueError."""
    name, expert, format_, planes = items(parse_json(line), 4)
    key = text(name, r"[^\0]{1,4096}"), None if expert is None else whole(expert), text(format_, r"[\w.-]{1,64}")
    return key, many(planes, lambda length: whole(length, 0, 1 << 50), 16)
