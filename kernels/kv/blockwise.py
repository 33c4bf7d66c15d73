"""Attention of many rows to keys and values that come in pieces, with the roundings of transformers' eager attention.

Eager attention rounds probabilities before it multiplies them with values, so the sum of a row has to be known first.
There are two sweeps over the pieces. The first merges sums by log-sum-exp, in float32. The second computes
probabilities and adds up weighted values, in float32. With sinks eager attention rounds once more, by a row's maximum:
one more sweep finds that. So results differ from eager's only in the order of float32 sums.
"""

from collections.abc import Iterator

import torch

SCRATCH = 16 << 20
"""The most bytes that the scores of some rows may take, with the tensors computed from them."""
COLUMNS = 2048
"""The most tokens of a block."""

_SCORE = 12
"""Bytes that a score takes, with the tensors computed from it."""


class BlockwiseAttention:
    """Attention of ``query`` [Hq, R, D] to pieces of keys [H, n, D] and values [H, n, Dv]. Query head h has the keys
    and values of head h // (Hq / H), as in ``repeat_kv``. ``softcap`` and ``sinks`` [Hq] are those of eager functions.

    For each sweep in ``range(first, 3)``, ``add`` gets all pieces, in any order. ``finish`` returns the outcome [Hq, R,
    Dv]. ``first`` is 0 if there are sinks, else 1.
    """

    def __init__(
        self,
        query: torch.Tensor,
        scaling: float,
        *,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
        watched: int = 0,
    ) -> None:
        """The attention that the last ``watched`` rows give to tokens is counted."""
        self._query, self._scaling, self._softcap = query, scaling, softcap
        heads, rows, _ = query.shape
        self._rounds = sinks is not None
        self._watched = rows - watched  # the first of them
        self.first = 0 if self._rounds else 1
        shape = (heads, rows, 1)
        least = torch.tensor(-torch.inf, device=query.device) if sinks is None else sinks.float().view(-1, 1, 1)
        self._most = least.expand(shape).clone()
        self._sum = torch.zeros(shape, device=query.device)
        self._sinks = sinks
        self._out: torch.Tensor | None = None

    def add(
        self,
        sweep: int,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        offset: int = 0,
        mask: torch.Tensor | None = None,
        alone: bool = False,
        masses: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> None:
        """Add a piece to sweep number ``sweep``. ``mask`` [1, R, n] or [Hq, R, n] is added to its scores; without one,
        row r sees the first ``offset + r + 1`` tokens of the piece. ``alone``: there is no other piece. Sweep 2 adds
        the probabilities of the tokens, summed over heads and watched rows, to ``masses``, float32 [n], and fills
        ``weights`` [Hq, R, n], zeros, with the probabilities."""
        columns = self._columns(keys, values)
        whole = alone and len(columns) == 1
        for some in columns:
            weighed = values[:, some] if whole or sweep < 2 else values[:, some].float()
            first = 0 if mask is not None else max(0, some.start - offset)  # row that sees any of these
            for part in self._parts(first, some.stop - some.start):
                seen = some.stop if mask is not None else min(some.stop, offset + part.stop)
                span = slice(some.start, seen)
                scores = self._scores(keys, part, span, offset, mask)
                if sweep == 0:
                    self._most[:, part] = torch.maximum(self._most[:, part], scores.amax(-1, keepdim=True).float())
                elif sweep == 1:
                    self._add_up(part, scores)
                else:
                    given = self._weigh(part, scores, weighed[:, : seen - some.start])
                    if weights is not None:
                        weights[:, part, span] = given
                    if masses is not None and part.stop > self._watched:
                        watched = given[:, max(0, self._watched - part.start) :]
                        masses[span] += watched.sum((0, 1), dtype=torch.float32)

    def finish(self) -> torch.Tensor:
        """[Hq, R, Dv], in the dtype of the query."""
        assert self._out is not None
        return self._out.to(self._query.dtype)

    def _columns(self, keys: torch.Tensor, values: torch.Tensor) -> list[slice]:
        """Slices of tokens that are computed together; their values in float32 fit into the scratch too."""
        heads, tokens, dim = values.shape
        each = max(1, min(COLUMNS, SCRATCH // (heads * dim * 4)))
        return [slice(start, min(tokens, start + each)) for start in range(0, tokens, each)]

    def _parts(self, first: int, tokens: int) -> Iterator[slice]:
        """Yield slices of rows, from number ``first`` on, that are computed together with ``tokens`` tokens."""
        heads, rows, _ = self._query.shape
        each = max(1, SCRATCH // (heads * tokens * _SCORE))
        for start in range(first, rows, each):
            yield slice(start, min(rows, start + each))

    def _scores(
        self, keys: torch.Tensor, part: slice, span: slice, offset: int, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Scores of the rows ``part`` and the tokens ``span``, [Hq, rows, n], as eager attention has them."""
        query = self._query[:, part]
        heads, rows, _ = query.shape
        grouped = query.reshape(len(keys), -1, query.shape[-1])
        scores = torch.matmul(grouped, keys[:, span].transpose(1, 2)).view(heads, rows, -1).mul_(self._scaling)
        if self._softcap is not None:
            scores = torch.tanh(scores / self._softcap) * self._softcap
        if mask is not None:
            scores = scores + mask[:, part, span]
        elif offset + part.start + 1 < span.stop:
            seen = torch.arange(offset + part.start, offset + part.stop, device=scores.device)
            hidden = torch.arange(span.start, span.stop, device=scores.device) > seen[:, None]
            scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)
        return scores

    def _add_up(self, part: slice, scores: torch.Tensor) -> None:
        if self._rounds:
            self._sum[:, part] += self._above(part, scores).exp_().sum(-1, keepdim=True)
            return
        scores = scores.float()
        before = self._most[:, part]
        most = torch.maximum(before, scores.amax(-1, keepdim=True))
        self._sum[:, part] = self._sum[:, part] * (before - most).exp() + (scores - most).exp_().sum(-1, keepdim=True)
        self._most[:, part] = most

    def _weigh(self, part: slice, scores: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """The probabilities [Hq, rows, n] of ``scores``, by which ``values`` [H, n, Dv] are weighed. Values are in
        float32 if other pieces follow: sums of parts stay in float32."""
        heads, rows, _ = scores.shape
        total = self._sum[:, part]
        if self._sinks is not None:
            sinks = self._sinks.view(-1, 1, 1).expand(-1, rows, -1)
            total = total + self._above(part, sinks).exp()
        shifted = self._above(part, scores) if self._rounds else scores.float() - self._most[:, part]
        weights = shifted.exp_().div_(total).to(scores.dtype).to(values.dtype)
        out = torch.matmul(weights.view(len(values), -1, scores.shape[-1]), values).view(heads, rows, -1)
        if self._out is None:
            self._out = torch.zeros(heads, self._query.shape[1], out.shape[-1], device=out.device)
        self._out[:, part] += out
        return weights

    def _above(self, part: slice, scores: torch.Tensor) -> torch.Tensor:
        """``scores`` less their row's maximum, rounded to their dtype; float32."""
        return (scores - self._most[:, part].to(scores.dtype)).float()
