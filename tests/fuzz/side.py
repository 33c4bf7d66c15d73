"""One of the two models that the same steps happen to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .checkpoints.write import Written

IMAGE_TOKEN = 319


class Side:
    """A model, and what its user has in hand. ``model`` is what the user calls; ``base`` is transformers' own, which
    may be inside of an adapter library's."""

    def __init__(
        self, open_model: Callable[[], Any], folder: Path, written: Written, *, ours: bool, rounded: bool = False
    ) -> None:
        """``open_model`` opens the model anew, from ``written``. ``folder`` is for files. ``rounded``: the other side
        may round otherwise."""
        self._open, self.folder, self.written, self.ours = open_model, folder, written, ours
        self.rounded = rounded
        self.base: Any = None
        self.model: Any = None
        self.forget()

    def forget(self) -> None:
        """Let go of everything but the files."""
        self.hooks: list[Any] = []
        self.kept: list[torch.Tensor] = []
        self.cache: Any = None
        self.adapters: list[str] = []
        self.assistant: Any = None

    def open(self) -> None:
        """Open the model, anew if it was open."""
        self.close()
        self.base = self.model = self._open()

    def close(self) -> None:
        """Close Penstock's model; transformers' is dropped."""
        base, self.base, self.model = self.base, None, None
        self.forget()
        if base is not None and self.ours:
            base.penstock.close()

    @property
    def vocabulary(self) -> int:
        """Tokens that text may have."""
        return int(self.base.config.get_text_config(decoder=True).vocab_size)

    def ids(self, rows: int, tokens: int, seed: int = 1) -> torch.Tensor:
        """Random tokens [rows, tokens], the same on both sides."""
        return torch.randint(3, 310, (rows, tokens), generator=torch.Generator().manual_seed(seed))

    def inputs(self, rows: int, tokens: int, *, padded: bool = False, image: bool = False) -> dict[str, Any]:
        """Arguments of a forward: tokens, a mask where the first row is ``padded`` on the left, and an image where the
        model takes one and ``image`` asks for it."""
        ids = self.ids(rows, tokens)
        found: dict[str, Any] = {"input_ids": ids}
        if padded:
            mask = torch.ones_like(ids)
            mask[0, : tokens // 2] = 0
            found |= {"input_ids": ids * mask, "attention_mask": mask}
        if getattr(self.base.config, "vision_config", None) is not None:
            pictures = image and not padded and tokens > 6
            if pictures:
                ids[:, 1:5] = IMAGE_TOKEN
                noise = torch.Generator().manual_seed(2)
                found["pixel_values"] = torch.randn(rows, 3, 32, 32, generator=noise).to(self.base.dtype)
            found["token_type_ids"] = (found["input_ids"] == IMAGE_TOKEN).long()
        return found

    def parameters(self) -> list[tuple[str, Any]]:
        """Names and parameters of the model as it was opened, without adapters."""
        return [(name, p) for name, p in self.base.named_parameters() if "lora_" not in name]

    def modules(self, kind: type[Any]) -> list[tuple[str, Any]]:
        """Names and modules of a kind, without adapters'."""
        return [(name, m) for name, m in self.base.named_modules() if isinstance(m, kind) and "lora_" not in name]

    def layers(self) -> list[Any]:
        """The layers of the decoder."""
        lists = [m for _, m in self.modules(torch.nn.ModuleList) if len(m)]
        depth = getattr(self.base.config.get_text_config(decoder=True), "num_hidden_layers", 0)
        return next(([*each] for each in lists if len(each) == depth), [])
