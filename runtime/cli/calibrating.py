"""The text that ``penstock pack`` calibrates formats with. Errors in it are found before anything is packed."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...tiering.errors import ConfigError, TextError
from ..config.config import Config
from ..config.settings import Weights
from ..loading.opening import OpenedModel, read_tokenizer
from .text import beginning, encode, read_text, window_size

if TYPE_CHECKING:
    from ...tiering.progress import Progress
    from ..packing.arrange.formats import Rules
    from ..packing.measure.calibration import Calibration

TOKENS = 4096
"""Most tokens of the text that are read."""
LEAST = 64
"""Fewest tokens that tell enough about the inputs of matrices."""


@dataclass(frozen=True, slots=True)
class TextCalibrator:
    """A calibrator: the original, whose files are ``opened``, reads ``windows`` of a text of ``length`` bytes."""

    opened: OpenedModel
    config: Config
    windows: Sequence[Sequence[int]]
    length: int
    bar: "Progress"

    @classmethod
    def of(cls, opened: OpenedModel, config: Config, rules: "Rules", text: str, bar: "Progress") -> "TextCalibrator":
        """For packing by ``rules``. Raises TextError, and ConfigError where nothing would be calibrated."""
        if opened.checkpoint is None:
            raise ConfigError("a bundle is in its formats already; name the checkpoint with --text")
        if not rules.changing:
            raise ConfigError(
                f"with format {rules} every bit is kept, so a text would change nothing; leave --text out, or "
                "choose int8, int4 or fit:SIZE"
            )
        content = read_text(text)
        tokenizer = read_tokenizer(opened, "pack reads its text with one")
        first = beginning(tokenizer)
        ids = encode(tokenizer, content, TOKENS)
        if len(ids) < LEAST:
            raise TextError(f"{text} has {len(ids)} tokens, {LEAST} are needed; name a longer text")
        size = window_size(None, len(first), opened.positions, "--text")
        from ..evaluation.evaluation import windows

        return cls(opened, config, windows(ids, first, size), len(tokenizer.decode(ids).encode()), bar)

    @property
    def digest(self) -> str:
        """SHA-256 of the tokens."""
        from ..evaluation.calibrate import digest_windows

        return digest_windows(self.windows)

    def __call__(self) -> "Calibration":
        from ..evaluation.calibrate import calibrate
        from ..loading.load import load_opened

        each = self.length / sum(map(len, self.windows))
        original = self.config.model_copy(update={"weights": Weights()})
        model = load_opened(self.opened, original, self.bar)
        with closing(model.penstock):
            self.bar.start("reading the text", self.length)
            return calibrate(model, self.windows, advance=lambda count: self.bar.advance(round(count * each)))
