"""sketch: keys in their few main directions, with the norm of the rest of each.

The directions of a layer's head are those of its first keys (principal components). The error of a score is at most the
norm of the key outside of them times that of the query (Cauchy and Schwarz).
"""

import torch

from .base import Bounds, bound_norms, bound_rounding, open_unknown, round_up
from .quantised_keys import conclude_bounds

_HEAD = 8
"""Bytes before a head's tokens: their count, int32, and the greatest norm of a key, float32."""
_LEVELS = 127


class KeySketch:
    """The summary ``sketch``, with ``rank`` directions. Bytes of a head of a page: count and norm, then bfloat16 [P]
    each of the tokens' scales and of the norms of their errors inside and outside of the directions, then int8 [P,
    rank] of their coordinates."""

    def __init__(self, rank: int, centre: torch.Tensor | None = None, basis: torch.Tensor | None = None) -> None:
        """``centre`` [H, D] and ``basis`` [H, rank, D], float32, orthonormal, are those that ``fit`` finds."""
        self.rank = rank
        self.name = f"sketch-{rank}"
        self._basis = None if centre is None or basis is None else (centre, basis)
        self.shared_bytes = 0 if self._basis is None else 4 * sum(part.numel() for part in self._basis)

    def page_bytes(self, heads: int, tokens: int, dim: int) -> int:
        """As in Summary."""
        if self.rank >= dim:
            raise ValueError(f"keys of {dim} channels have fewer directions outside of {self.name} than that")
        return heads * (_HEAD + tokens * (6 + self.rank))

    def fit(self, keys: torch.Tensor) -> "KeySketch":
        """As in Summary."""
        numbers = keys.double().nan_to_num(0, 0, 0)
        centre = numbers.mean(1)
        numbers -= centre[:, None]
        _, directions = torch.linalg.eigh(numbers.mT @ numbers)
        return KeySketch(self.rank, centre.float(), directions[..., -self.rank :].mT.float().contiguous())

    def build(self, keys: torch.Tensor, tokens: int | None = None) -> torch.Tensor:
        """As in Summary."""
        centre, basis = self._find_basis()
        pages, heads, there, _ = keys.shape
        tokens = tokens or there
        numbers = keys.float()
        from_centre = numbers - centre[:, None]
        inside = from_centre @ basis.mT
        scale = round_up(inside.abs().amax(-1) / _LEVELS).clamp_min(torch.finfo(torch.bfloat16).tiny)
        whole = (inside / scale.float()[..., None]).round().clamp(-_LEVELS, _LEVELS)
        left = from_centre - whole * scale.float()[..., None] @ basis
        left_inside = left @ basis.mT
        errors = [round_up(bound_norms(left_inside)), round_up(bound_norms(left - left_inside @ basis))]
        reach = bound_norms(numbers).amax(-1)
        finite = reach.isfinite() & torch.stack([scale, *errors]).isfinite().all(-1).all(0)

        out = torch.zeros(pages, heads, self.page_bytes(heads, tokens, keys.shape[-1]) // heads, dtype=torch.uint8)
        out[..., :4] = torch.where(finite, there, 0).to(torch.int32)[..., None].view(torch.uint8)
        out[..., 4:_HEAD] = reach[..., None].contiguous().view(torch.uint8)
        for number, part in enumerate((scale, *errors)):
            at = _HEAD + 2 * tokens * number
            out[..., at : at + 2 * there] = part.contiguous().view(torch.uint8)
        at = _HEAD + 6 * tokens
        out[..., at : at + there * self.rank] = whole.nan_to_num(0).to(torch.int8).flatten(2).view(torch.uint8)
        return out.view(pages, -1)

    def log_bounds(
        self,
        query: torch.Tensor,
        summaries: torch.Tensor,
        *,
        heads: int,
        tokens: int,
        scaling: float,
        softcap: float | None = None,
    ) -> Bounds:
        """As in Summary."""
        centre, basis = self._find_basis()
        all_heads, rows, dim = query.shape
        asked = query.float().reshape(heads, -1, dim)
        per_head = summaries.view(len(summaries), heads, -1).transpose(0, 1)
        count = per_head[..., :4].contiguous().view(torch.int32)
        reach = per_head[..., 4:_HEAD].contiguous().view(torch.float32)
        at = _HEAD + 6 * tokens
        factors = per_head[..., _HEAD:at].contiguous().view(torch.bfloat16).float()
        scale, error_inside, error_outside = factors.view(heads, 1, -1, 3, tokens).unbind(3)  # [H, 1, n, P] each
        whole = per_head[..., at:].contiguous().view(torch.int8).float().view(heads, -1, tokens, self.rank)

        inside = asked @ basis.mT
        outside = asked - inside @ basis
        products = torch.einsum("hrk,hntk->hrnt", inside, whole) * scale + (asked @ centre[..., None])[..., None]
        # The centre may lie farther away than any key.
        far = reach[:, None] * 2 + bound_norms(centre)[:, None, None, None]
        wrong = (
            bound_norms(inside)[..., None, None] * error_inside
            + bound_norms(outside)[..., None, None] * error_outside
            + bound_norms(asked)[..., None, None] * far * (2.0**-24 * (8 * dim + 64))
        )
        there = (torch.arange(tokens) < count)[:, None]
        bounds = conclude_bounds(products, wrong, there, scaling, softcap, bound_rounding(query.dtype, softcap))
        return Bounds(*(bound.reshape(all_heads, rows, -1) for bound in open_unknown(bounds)))

    def _find_basis(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._basis is None:
            raise ValueError(f"{self.name} has no directions yet; take what `fit` returns")
        return self._basis
