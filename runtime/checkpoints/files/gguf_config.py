"""transformers' configuration of a GGUF file, made of a short copy of the header.

transformers reads with the ``gguf`` package, which believes what a file says, and takes seconds for a vocabulary. So it
gets a file of ours: the checked values, the names of the tensors, and nothing long.
"""

import contextlib
import logging
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from ....tiering.errors import CheckpointError
from .failures import reason
from .gguf_types import GgufHeader

_TOKENS = "tokenizer.ggml.tokens"


def read_gguf_config(path: Path, header: GgufHeader) -> tuple[PretrainedConfig, dict[str, Any]]:
    """The configuration of the file at ``path``, and what transformers made it of. Raises CheckpointError."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        with quiet_transformers(), tempfile.NamedTemporaryFile(prefix="penstock-", suffix=".gguf") as copy:
            copy.write(_short_copy(header))
            copy.flush()
            values: dict[str, Any] = load_gguf_checkpoint(copy.name, return_tensors=False)["config"]
            if "vocab_size" not in values and _TOKENS in header.arrays:
                values["vocab_size"] = header.arrays[_TOKENS].count
            return AutoConfig.for_model(**values | _widths(values, header.values)), values
    except Exception as error:  # configurations check themselves, each in its own way
        raise CheckpointError(f"{path}: transformers cannot read its configuration: {reason(error)}") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' remarks on what it does not read of a file."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _short_copy(header: GgufHeader) -> bytes:
    """A GGUF file with the short entries, and tensors of one number."""
    infos = (
        struct.pack(f"<Q{len(raw)}sIQIQ", len(raw), raw, 1, 1, 0, 0) for raw in (n.encode() for n in header.tensors)
    )
    counts = struct.pack("<4sIQQ", b"GGUF", header.version, len(header.tensors), len(header.short))
    copy = b"".join((counts, *header.short, *infos))
    # Wherever the alignment puts the number: there are bytes for it.
    return copy + bytes(int(header.values.get("general.alignment", 32)) + 4)


def _widths(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, int]:
    """The widths of experts, where the file has them and transformers takes no notice."""
    architecture = fields["general.architecture"]
    names = {
        "moe_intermediate_size": f"{architecture}.expert_feed_forward_length",
        "shared_expert_intermediate_size": f"{architecture}.expert_shared_feed_forward_length",
    }
    return {name: fields[own] for name, own in names.items() if own in fields and name not in values}
