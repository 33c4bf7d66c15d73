"""Bundles whose author has made every checksum right again: another manifest, or other bytes in the planes."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import penstock
from penstock.kernels.formats.registry import FORMATS
from penstock.tiering.store.bundle.manifest import TensorSpec, encode, signed
from penstock.tiering.store.bundle.manifest_file import read_manifest
from penstock.tiering.store.bundle.reader import Bundle
from tests.hostile.kind import Result, close, equal
from tests.hostile.mutations import mutate_bytes, mutate_document, replace_file
from tests.support.logits import logits
from tests.support.tiny_models import save_tiny

WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"io_backend": "io_uring"},
    {"io_backend": "buffered"},
    {"kv_host_memory": "256KiB"},
    {"device": "emulated", "device_memory": "2MiB"},
)
"""Settings with which a bundle is loaded."""
EXACT = ("as-is", "lossless")
_HUGE = 1e18
"""The square of a larger number is near what float32 and bfloat16 can hold."""


@dataclass(frozen=True)
class BundleKind:
    """Bundles of a model of type ``model`` in ``format``, on two drives if they are ``striped``."""

    model: str
    format: str
    striped: bool = False
    planes: bool = False
    """Whether the bytes of blocks are changed, not the manifest."""

    def make(self, folder: Path) -> None:
        """As Kind."""
        dtype = torch.float32 if self.format == "as-is" else torch.bfloat16
        sizes = {} if self.format == "as-is" else {"hidden_size": 128}
        checkpoint = save_tiny(self.model, folder / "checkpoint", dtype, **sizes)
        stripes = {"store_stripes": [folder / "stripe"]} if self.striped else {}
        options: dict[str, Any] = {"store": folder / "store", "host_memory": "64MiB", "weights_format": self.format}
        with penstock.load(checkpoint, **options, **stripes) as model:
            assert model.penstock.bundle.parent == folder / "store"

    def mutate(self, rng: random.Random, folder: Path) -> str:
        """As Kind."""
        bundle = bundle_in(folder)
        self._move_stripes(bundle, folder)
        return _mutate_planes(rng, bundle) if self.planes else _mutate_manifest(rng, bundle)

    def use(self, folder: Path, way: int) -> Result:
        """As Kind."""
        bundle = bundle_in(folder)
        options: dict[str, Any] = {"host_memory": "8MiB", "attn_implementation": "eager"} | WAYS[way]
        with penstock.load(bundle, **options) as model:
            found = [*logits(model)]
        if way == 0:
            with Bundle.open(bundle) as opened:
                for damage in opened.verify():  # of a block that nothing has read
                    raise damage
        return found

    def is_right(self, folder: Path, result: Result, way: int) -> bool:
        """As Kind."""
        return means(bundle_in(folder), result, bits="kv_host_memory" not in WAYS[way])

    @staticmethod
    def _move_stripes(bundle: Path, folder: Path) -> None:
        """Name the copies of the parts on other drives."""
        path = bundle / "manifest.json"
        document = json.loads(path.read_text())
        for drive in document.get("drives", [])[1:]:
            drive["folder"] = str(folder / "stripe" / Path(drive["folder"]).name)
        path.write_text(encode(signed(document)))


def bundle_in(folder: Path) -> Path:
    """The bundle in the store in ``folder``."""
    (bundle,) = (path for path in (folder / "store").iterdir() if path.is_dir())
    return bundle


def means(bundle: Path, result: Result, *, bits: bool = True) -> bool:
    """Whether ``result`` is what transformers computes with the numbers in ``bundle``; with the same ``bits`` where
    formats keep them."""
    model = decoded(bundle)
    meant = [*logits(model)]
    if bits and {spec.packing.format if spec.packing else "as-is" for spec in _specs(bundle)} <= set(EXACT):
        return equal(result, meant)
    # Forged scales are huge: at a tie, rounding sends a token to another expert, or attention elsewhere; and where sums
    # overflow, it decides what is infinite.
    near = [close([one], [other]) for one, other in zip(result, meant, strict=True)]
    overflows = any(not float(weight.detach().abs().max()) <= _HUGE for weight in model.parameters())
    return (overflows or 2 * sum(near) > len(near)) and _has_weights_of(bundle, model)


def _has_weights_of(bundle: Path, model: PreTrainedModel) -> bool:
    """Whether every weight that is read from the loaded bundle has the bits of that in ``model``."""
    with penstock.load(bundle, host_memory="64MiB") as loaded, torch.no_grad():
        weights = dict(model.named_parameters())
        return all(equal([weight.clone()], [weights[name]]) for name, weight in loaded.named_parameters())


def _specs(bundle: Path) -> list[TensorSpec]:
    return [spec for block in read_manifest(bundle).blocks for spec in block.tensors]


def _mutate_manifest(rng: random.Random, bundle: Path) -> str:
    path = bundle / "manifest.json"
    way = rng.random()
    if way < 0.1:
        return f"manifest: {mutate_bytes(rng, path)}"
    if way < 0.15:
        some = rng.choice([path, *bundle.glob("*.bin")])
        return f"{some.name}: {replace_file(rng, some)}"
    if way < 0.2:
        some = rng.choice([*bundle.glob("*.bin")])
        return f"{some.name}: {mutate_bytes(rng, some)}"
    document = json.loads(path.read_text())
    said = []
    for _ in range(rng.choice((1, 1, 2))):
        # Most places are numbers of tensors: have the few others their turn too.
        part = rng.choice([key for key in document if key not in ("blocks", "checksum")])
        if rng.random() < 0.7:
            block = rng.choice(document["blocks"])
            at = document["blocks"].index(block)
            document["blocks"][at], done = mutate_document(rng, block)
            said.append(f"block {at}: {done}")
        else:
            holder, done = mutate_document(rng, {part: document[part]})
            document = holder if not isinstance(holder, dict) else {**document, **holder}
            said.append(f"{part}: {done}")
        if not isinstance(document, dict):
            path.write_text(json.dumps(document))
            return "; ".join(said)
    path.write_bytes(encode(signed(document)).encode("utf-8", "surrogatepass"))
    return "; ".join(said)


def _mutate_planes(rng: random.Random, bundle: Path) -> str:
    """Other bytes in one block, with a right checksum; most changes at the ends of planes, where indexes lie."""
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    encoded = [block for block in document["blocks"] if any(len(tensor) == 6 for tensor in block["tensors"])]
    block = rng.choice(encoded or document["blocks"])
    file, offset, length = block["extent"]
    data = bundle / document["files"][file]["name"]
    content = bytearray(data.read_bytes())
    _, _, _, at, size, *_ = rng.choice(block["tensors"])
    kind = rng.choice(("byte", "word", "run", "all", "zero"))
    first, end = offset + at, offset + at + size
    near = rng.randrange(min(size, 64))
    start = rng.choice((first + rng.randrange(size), first + near, end - 1 - near))
    match kind:
        case "byte":
            content[start] ^= 1 << rng.randrange(8)
        case "word":
            content[start : min(end, start + 4)] = rng.choice((b"\xff" * 4, b"\0" * 4, rng.randbytes(4)))[: end - start]
        case "run":
            content[start : min(end, start + 64)] = rng.randbytes(min(64, end - start))
        case "all":
            content[first:end] = rng.randbytes(size)
        case "zero":
            content[first:end] = bytes(size)
    data.write_bytes(content)
    block["checksum"] = xxhash.xxh3_64_hexdigest(bytes(content[offset : offset + length]))
    path.write_text(encode(signed(document)))
    return f"{kind} at {start - first} of {size} in {block['id']}"


def decoded(bundle: Path) -> PreTrainedModel:
    """transformers' model with the numbers that ``bundle`` holds, decoded one by one."""
    manifest = read_manifest(bundle)
    config = AutoConfig.from_pretrained(bundle / "model")
    dtype = getattr(torch, manifest.dtype)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    into = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    places = manifest.places(bundle)
    planes: dict[tuple[str, int | None], list[torch.Tensor]] = {}
    with torch.no_grad():
        for block in manifest.blocks:
            file = manifest.files[block.extent.file]
            with open(places[file.drive] / file.name, "rb") as data:
                data.seek(block.extent.offset)
                content = torch.frombuffer(bytearray(data.read(block.extent.length)), dtype=torch.uint8)
            for spec in block.tensors:
                part = content[spec.offset : spec.offset + spec.length].clone()
                known = planes.setdefault((spec.name, block.id.expert), [])
                known.append(part)
                target = into[spec.name] if block.id.expert is None else into[spec.name][block.id.expert]
                target.copy_(_numbers(spec, known))
    return model


def _numbers(spec: TensorSpec, planes: list[torch.Tensor]) -> torch.Tensor:
    dtype = getattr(torch, spec.dtype)
    if spec.packing is None:
        return planes[0].view(dtype).view(spec.shape)
    n, k = spec.encoded_shape
    out = torch.empty(n, k, dtype=dtype)
    FORMATS[spec.packing.format].decode(planes, n, k, slice(0, n), out)
    return out.t() if spec.packing.transposed else out
