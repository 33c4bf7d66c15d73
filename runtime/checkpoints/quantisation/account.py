"""Account for every tensor of a checkpoint (pure): used, known to be useless, left over, or a lost part of a weight.

Names decide. What transformers would not even mention is useless; so are scales of activations and of KV, since only
weights come quantised here. What is left over is reported, as transformers does. A lost part is an error: it says
something about a weight in use that nobody has taken into account.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

_PART = re.compile(
    r"([._])(scales?|scale_inv|scale_weight|qscale_weight|pre_quant_scale|zeros?|zero_point|qweight|qzeros|packed|qdata"
    r"|absmax|nested_absmax|quant_map|nested_quant_map|SCB|codebooks?|codes|blocks"
    r"|weight_(scales?|scale_inv|scale_2|global_scale|zero_point|packed|shape|qdata|g_idx))$"
)
"""What the name of a part of a quantised weight ends with; behind "." in its module, behind "_" the weight's own."""
_STATE = ".quant_state."

_USELESS = re.compile(
    r"(^|[._])((input|output|activation|act|k|v|q|kv|prob)_(zero_point|(global_)?scale(_ub)?)|qscale_act|g_idx"
    r"|input_amax|weight_format)$"
    r"|(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.masked_bias|position_ids)$"
)


@dataclass(frozen=True, slots=True)
class Account:
    """Names of tensors that no weight is made of: ``left_over`` ones, and ``lost`` parts of weights in use."""

    left_over: tuple[str, ...]
    lost: tuple[str, ...]


def is_part(name: str) -> bool:
    """Whether a tensor of this name belongs to a quantised weight, and is not its main one."""
    return _USELESS.search(name) is None and (_PART.search(name) is not None or _STATE in name)


def parts_by_weight(names: Iterable[str]) -> dict[str, list[str]]:
    """Those of ``names`` that say something about the numbers of a weight, by the names that this may have."""
    found: dict[str, list[str]] = {}
    for name in filter(is_part, names):
        for weight in dict.fromkeys(_weights_of(name)):
            found.setdefault(weight, []).append(name)
    return found


def account_for(names: Iterable[str], used: Collection[str], useless: Iterable[str], *, quantised: bool) -> Account:
    """Account for ``names``, the tensors of a checkpoint, of which the model's weights are made of ``used``.

    ``useless`` are patterns of names that the model says are none of its own. In a checkpoint that is ``quantised``,
    parts may be lost.
    """
    ignored = re.compile("|".join(f"({pattern})" for pattern in useless) or r"(?!)")
    unused = [n for n in names if n not in used and not _USELESS.search(n) and not ignored.search(n)]
    parts = parts_by_weight(unused) if quantised else {}
    lost = {part for weight in parts.keys() & used for part in parts[weight]}
    return Account(tuple(n for n in unused if n not in lost), tuple(n for n in unused if n in lost))


def _weights_of(part: str) -> Iterator[str]:
    """The names of the weights that ``part`` may belong to."""
    if _STATE in part:
        yield part.partition(_STATE)[0]
        return
    module, _, own = part.rpartition(".")
    yield f"{module}.weight"
    yield module  # NAME.weight.absmax
    if (match := _PART.search(own)) and match[1] == "_":  # gate_up_proj_scale_inv
        yield f"{module}.{own[: match.start()]}"
