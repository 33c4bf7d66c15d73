"""A GGUF file's metadata as transformers' readers give it, made of the header that was parsed already.

transformers reads a file anew for its configuration, for the class of its tokenizer and for the tokenizer, in part with
the ``gguf`` package, which takes seconds for a vocabulary. While ``header_given`` lasts it takes ours instead.
"""

import struct
from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ....tiering.errors import CheckpointError
from .gguf_types import SCALARS, STRING, GgufArray, GgufHeader
from .regular import RegularFile
from .replaced import replaced

_LENGTH = struct.Struct("<Q")


def read_metadata(path: Path, header: GgufHeader, strings: Container[str] = ()) -> dict[str, Any]:
    """The values of the file at ``path`` by key, as transformers reads them: arrays of numbers as lists; those of text
    as lists if they are among ``strings``, else their number of elements. Raises CheckpointError."""
    metadata: dict[str, Any] = dict(header.values)
    with RegularFile(path) as file:
        for key, array in header.arrays.items():
            if array.values is not None:
                metadata[key] = list(array.values)
            elif array.type != STRING:
                metadata[key] = [*struct.unpack(f"<{array.count}{SCALARS[array.type]}", _bytes_of(file, array))]
            else:
                metadata[key] = _read_strings(file, key, array) if key in strings else array.count
    return metadata


@contextmanager
def header_given(path: Path, header: GgufHeader, config: Mapping[str, Any]) -> Iterator[None]:
    """Have transformers take what ``header`` says of the file at ``path``, and ``config``, which it made of that, where
    it would read the file. Other files it reads as ever."""
    from transformers import modeling_gguf_pytorch_utils as loading
    from transformers.integrations import gguf
    from transformers.integrations.gguf import reader

    read_any, load_any = reader.read_gguf_metadata, loading.load_gguf_checkpoint

    def read_gguf_metadata(file: str, string_arrays: Container[str] = ()) -> Any:
        if Path(file) != path:
            return read_any(file, string_arrays)
        return read_metadata(path, header, string_arrays), tuple(header.tensors)

    class Loaded(dict[str, Any]):
        """``config``; what else an older transformers wants of it, it reads itself."""

        def __missing__(self, key: str) -> Any:
            return load_any(str(path))[key]

    def load_gguf_checkpoint(file: str, *rest: Any, **more: Any) -> Any:
        return Loaded(config=dict(config)) if Path(file) == path else load_any(file, *rest, **more)

    with ExitStack() as stack:
        for module in (gguf, reader):
            stack.enter_context(replaced(module, "read_gguf_metadata", read_gguf_metadata))
        stack.enter_context(replaced(loading, "load_gguf_checkpoint", load_gguf_checkpoint))
        yield


def _bytes_of(file: RegularFile, array: GgufArray) -> bytes:
    return file.read(array.offset, array.length)


def _read_strings(file: RegularFile, key: str, array: GgufArray) -> list[str]:
    """The elements of an array of text. The lengths are looked at again: the file may have changed since."""
    raw, at, found = _bytes_of(file, array), 0, []
    try:
        for _ in range(array.count):
            (length,) = _LENGTH.unpack_from(raw, at)
            start, at = at + _LENGTH.size, at + _LENGTH.size + length
            if at > len(raw):
                raise ValueError("a text goes on behind its array")
            found.append(raw[start:at].decode())
    except (ValueError, struct.error) as error:
        raise CheckpointError(f"{file.path} is damaged: {key} is no list of texts ({error}); fetch it again") from error
    return found
