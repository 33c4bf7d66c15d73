"""Lengths of encoded matrices that depend on their numbers: found out once, kept while a bundle is written."""

import json
from contextlib import suppress
from pathlib import Path
from typing import IO

from ....tiering.store.bundle.drive_writer import translate_errors
from ....tiering.store.bundle.journal import LENGTHS
from ....tiering.store.bundle.manifest import TensorSpec
from ..arrange.formats import Choice
from ..arrange.planes import Lengths, Planes


class KeptLengths:
    """Remembers what ``lengths``, which encodes a matrix, has told. It also knows what an interrupted packing has kept
    in ``folder``, that of the bundle that is being written. For one thread at a time."""

    def __init__(self, folder: Path, lengths: Lengths) -> None:
        self._path, self._lengths = folder / LENGTHS, lengths
        self._known: dict[tuple[str, int | None, str], Planes] = {}
        self._file: IO[str] | None = None
        with suppress(FileNotFoundError, ValueError, TypeError):  # a line that a crash tore ends what is known
            for line in self._path.read_bytes().splitlines():
                name, expert, format_, planes = json.loads(line)
                self._known[name, expert, format_] = tuple(planes)

    def __call__(self, spec: TensorSpec, expert: int | None, choice: Choice) -> Planes:
        """Bytes of each plane. Raises what ``lengths`` raises, FlashFull or BundleError when they cannot be kept."""
        key = spec.name, expert, choice.format
        if key not in self._known:
            self._known[key] = self._lengths(spec, expert, choice)
            with translate_errors(self._path.parent):
                self._keep(key)
        return self._known[key]

    def close(self) -> None:
        """Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _keep(self, *keys: tuple[str, int | None, str]) -> None:
        if self._file is None:  # anew, without what a crash has torn
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            self._file = open(self._path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by close
            keys = tuple(self._known)
        for key in keys:
            self._file.write(json.dumps([*key, self._known[key]], separators=(",", ":")) + "\n")
