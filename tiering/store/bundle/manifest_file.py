"""Reads a manifest from its file: bounded, in one strict schema, signed, and checked before anything uses it."""

import hashlib
import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ....kernels.io.regular import read_regular
from ...errors import BundleCorrupt, BundleError, BundleVersionError
from ...units import RESIDUALS, BlockId, BlockKind, Extent, MiB
from .manifest import ENCODED, TENSOR_ALIGNMENT, Block, BundleDrive, DataFile, Manifest, Packing, TensorSpec
from .manifest_check import MOST_BYTES, check
from .marks import HEAD, NAME

MOST = 512 * MiB
"""Bytes of a manifest. One of a million blocks has less."""

_SIGNED = re.compile(r',"checksum":"([0-9a-f]{64})"\}\s*')
_SIGNATURE = 100
"""Characters at the end that hold the signature."""

_Text = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00]*$")]
_Bytes = Annotated[int, Field(ge=0, le=MOST_BYTES)]
_Count = Annotated[int, Field(ge=0, lt=1 << 31)]
_Dimensions = Annotated[list[_Bytes], Field(max_length=16)]
_Plane = Annotated[int, Field(ge=0, le=RESIDUALS)]
_Address = Annotated[int, Field(ge=0, lt=TENSOR_ALIGNMENT)]
_Packing = tuple[_Text, _Plane, bool, _Address]
_Tensor = tuple[_Text, _Text, _Dimensions, _Bytes, _Bytes]
_PackedTensor = tuple[_Text, _Text, _Dimensions, _Bytes, _Bytes, _Packing]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _File(_Strict):
    name: _Text
    length: _Bytes
    drive: _Count = 0


class _Drive(_Strict):
    folder: _Text
    bytes_per_second: _Bytes


class _Block(_Strict):
    id: tuple[BlockKind, _Text, _Count]
    extent: tuple[_Count, _Bytes, _Bytes]
    checksum: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    resident: bool
    tensors: list[_Tensor | _PackedTensor]


class _Document(_Strict):
    format: str
    version: int
    identity: _Text
    checkpoint: _Text
    dtype: _Text
    codec: _Text
    tied: dict[_Text, _Text]
    files: list[_File]
    blocks: list[_Block]
    drives: list[_Drive] = []
    notes: list[_Text] = []
    checksum: str


def read_manifest(bundle: Path) -> Manifest:
    """The manifest of the bundle in the folder ``bundle``.

    Raises BundleError when there is none or it cannot be read, BundleVersionError when a newer penstock wrote it, and
    BundleCorrupt when it says what cannot be.
    """
    path = bundle / NAME
    try:
        text = read_regular(path, MOST).decode()
    except FileNotFoundError:
        raise BundleError(f"{bundle} is not a bundle: it has no {NAME}") from None
    except UnicodeDecodeError as error:
        raise _damaged(str(path), str(error)) from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    return parse(text, str(path))


def parse(text: str, where: str) -> Manifest:
    """Read what ``manifest.dump`` wrote. ``where`` names the file in error messages.

    Raises BundleVersionError for a newer version, and BundleCorrupt for other text that it cannot read.
    """
    head = HEAD.match(text)
    if head is None:
        raise _damaged(where, "it is not a penstock manifest")
    if (version := int(head[1])) > ENCODED:
        raise BundleVersionError(
            f"{where} has bundle version {version}, this penstock reads up to {ENCODED}; "
            "upgrade penstock, or delete the bundle and pack again"
        )
    signature = _SIGNED.search(text, max(0, len(text) - _SIGNATURE))
    if signature is None or signature.end() != len(text):
        raise _damaged(where, "its checksum is missing")
    if hashlib.sha256(f"{text[: signature.start()]}}}".encode(errors="surrogatepass")).hexdigest() != signature[1]:
        raise _damaged(where, "its checksum does not match")
    try:
        manifest = _made_of(_Document.model_validate_json(text))
        check(manifest)
    except ValidationError as invalid:
        error = invalid.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, error["loc"]))
        raise _damaged(where, f"{place}: {error['msg']}" if place else error["msg"]) from invalid
    except ValueError as error:
        raise _damaged(where, str(error)) from error
    return manifest


def _made_of(document: _Document) -> Manifest:
    return Manifest(
        identity=document.identity,
        checkpoint=document.checkpoint,
        dtype=document.dtype,
        codec=document.codec,
        tied=document.tied,
        files=tuple(DataFile(file.name, file.length, file.drive) for file in document.files),
        blocks=tuple(map(_block_of, document.blocks)),
        drives=tuple(BundleDrive(drive.folder, drive.bytes_per_second) for drive in document.drives),
        notes=tuple(document.notes),
    )


def _block_of(raw: _Block) -> Block:
    specs = (
        TensorSpec(name, dtype, tuple(shape), offset, length, *(Packing(*one) for one in packing))
        for name, dtype, shape, offset, length, *packing in raw.tensors
    )
    return Block(BlockId(*raw.id), Extent(*raw.extent), raw.checksum, tuple(specs), raw.resident)


def _damaged(where: str, why: str) -> BundleCorrupt:
    return BundleCorrupt(f"{where} is damaged ({why}); delete the bundle and pack again")
