"""What ``generate`` gave: tokens, and the logits that they were chosen by."""

from dataclasses import dataclass

import torch

from .closeness import Closeness

ENOUGH_TO_TELL = 64
"""Logits that are not all numbers of a coarser dtype by chance."""


@dataclass(frozen=True)
class Generated:
    """``sequences`` [rows, tokens]; ``logits``, where known, one [rows, vocabulary] for each new token. ``greedy``: the
    best token is taken, so that close logits give equal tokens unless two are close. ``close`` [rows, new tokens]:
    where a router chose between experts that are nearly equal."""

    sequences: torch.Tensor
    logits: tuple[torch.Tensor, ...] = ()
    greedy: bool = False
    close: torch.Tensor | None = None

    def difference(self, wanted: "Generated", closeness: Closeness) -> str:
        """Where this differs from ``wanted``; empty where it does not. Where only sums differ, or a format rounds, only
        what greedy choice must make equal is compared."""
        if closeness is not Closeness.BITS:
            return self._far(wanted, closeness) if self.greedy else ""
        if not torch.equal(self.sequences, wanted.sequences):
            return f"tokens are {self.sequences.tolist()}, not {wanted.sequences.tolist()}"
        if len(self.logits) != len(wanted.logits):
            return f"{len(self.logits)} tokens have logits, not {len(wanted.logits)}"
        for number, (one, other) in enumerate(zip(self.logits, wanted.logits, strict=True)):
            if not closeness.near(one, other):
                return f"the logits of new token {number} differ"
        return ""

    def _far(self, wanted: "Generated", closeness: Closeness) -> str:
        """As ``difference``, up to the first token that differs because two were close."""
        new = len(wanted.logits)
        prompt = wanted.sequences.shape[1] - new
        open_rows = torch.ones(len(wanted.sequences), dtype=torch.bool)
        for number in range(min(new, len(self.logits))):
            for row in range(len(open_rows)):
                if not open_rows[row]:
                    continue
                one, other = self.logits[number][row], as_computed(wanted.logits[number][row])
                if not closeness.near(one, other):
                    if wanted.close is not None and wanted.close[row, number]:
                        open_rows[row] = False
                        continue
                    return f"the logits of new token {number} of row {row} are too far off"
                token, right = (int(each.sequences[row, prompt + number]) for each in (self, wanted))
                if token != right:
                    if float(other[right] - other[token]) > 2 * closeness.slack(other):
                        return f"new token {number} of row {row} is {token}, not {right}"
                    open_rows[row] = False
        return ""


def as_computed(logits: torch.Tensor) -> torch.Tensor:
    """``logits`` in the dtype that the model computed them in: ``generate`` gives all of them as float32, and numbers
    of half precision are as far off as half precision rounds."""
    known = torch.nan_to_num(logits, posinf=0.0, neginf=0.0)
    for coarser in (torch.bfloat16, torch.float16):
        if known.numel() >= ENOUGH_TO_TELL and torch.equal(known.to(coarser).to(known.dtype), known):
            return logits.to(coarser)
    return logits
