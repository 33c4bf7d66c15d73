"""``penstock eval``: the effect of settings, or of each of several weight formats, on the quality of a model."""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...tiering.errors import EvaluationError, TextError
from ...tiering.store.bundle.manifest_file import read_manifest
from ...tiering.units import format_size
from ..config.config import Config
from ..config.settings import Weights
from ..config.values import EXACT_FORMATS
from ..loading.opening import OpenedModel, is_bundle, open_files, read_tokenizer
from ..loading.progress import shown
from .console import print_json, quiet_libraries
from .measure import peak_resident_bytes
from .options import Settings, SourceOptions
from .tables import print_table
from .text import WINDOW, beginning, encode, read_text, window_size

if TYPE_CHECKING:
    from ...tiering.progress import Progress
    from ..evaluation.logits import KeptLogits

TOKENS = 4096
"""Default number of tokens of the text."""


def command(
    source: SourceOptions,
    text: Annotated[str, typer.Option("--text", metavar="FILE", help="What the model reads, in UTF-8.")],
    settings: Settings,
    tokens: Annotated[
        int | None, typer.Option("-n", "--tokens", metavar="N", min=2, help=f"Most tokens of it; else {TOKENS}.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            help=f"Tokens that the model sees at a time, the first of which it does not predict; else {WINDOW}.",
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="FORMATS", help="Weight formats to compare, each for all weights, separated by commas."),
    ] = None,
) -> None:
    """Say how well MODEL predicts a text with these settings (perplexity), and how far from the original, the same
    checkpoint with weights as they are: KL divergence, and how often the most probable token is the same.

    The original is run too, and its logits are kept in the store's folder until the end. Settings that change no bit
    are not compared with it: their divergence is 0.
    """
    config = settings.load()
    original = config.model_copy(update={"weights": Weights()})
    tested = _tested(config, original, compare)
    _check_original(source, tested)
    content = read_text(text)
    quiet_libraries()
    with shown() as bar:
        opened = open_files(source, config.store.path)
        tokenizer = read_tokenizer(opened, "eval reads its text with one")
        first = beginning(tokenizer)
        size = window_size(context, len(first), opened.positions, "--context")
        ids = encode(tokenizer, content, tokens or TOKENS)
        reader = _Reader(opened, _in_windows(ids, first, size, text), len(tokenizer.decode(ids).encode()), bar)
        rows = reader.run(original, tested)
    report = {"text": Path(text).name, "context": size, "windows": len(reader.windows)}
    if settings.json:
        found = rows[0] if _is_original(config, original) else rows[1]
        several = {"formats": rows} if compare is not None else {}
        print_json(report | found | {"original": rows[0]} | several | {"peak_rss_bytes": peak_resident_bytes()})
    else:
        _print(report, rows)


def _tested(config: Config, original: Config, compare: str | None) -> dict[str, Config]:
    """The settings to compare with the original, by name: the given ones, unless they are the original's, then the
    formats in ``compare``. Only [weights] changes what a model computes. Raises ConfigError."""
    named = [name.strip() for name in (compare or "").split(",") if name.strip()]
    if compare is not None and not named:
        raise typer.BadParameter("it names weight formats, separated by commas", param_hint="--compare")
    wanted = [config, *(original.override(weights_format=name) for name in named)]
    return {_name(each.weights): each for each in wanted if not _is_original(each, original)}


def _is_original(config: Config, original: Config) -> bool:
    """Whether the weights are those that the ``original`` has, as they are."""
    return config.weights in (original.weights, original.weights.model_copy(update={"format": "as-is"}))


def _name(weights: Weights) -> str:
    """The name of settings of weights: the format, and each key with another value than the default."""
    usual = Weights().model_dump()
    others = [
        f"{key}={value}" for key, value in weights.model_dump().items() if value != usual[key] and key != "format"
    ]
    return " ".join([weights.format, *others])


def _check_original(source: SourceOptions, tested: dict[str, Config]) -> None:
    """Raise EvaluationError for a bundle that is not the original, or that is to be tested in other formats too."""
    if not is_bundle(source.model):
        return
    held = read_manifest(Path(source.model).expanduser()).codec
    if held not in EXACT_FORMATS:
        raise EvaluationError(
            f"{source.model} holds {held} weights, not the original's to compare them with; "
            f"name the checkpoint, with --weights-format {held}"
        )
    if tested:
        raise EvaluationError(f"{source.model} holds its weights {held} only; name the checkpoint to test formats")


def _in_windows(ids: Sequence[int], first: Sequence[int], size: int, name: str) -> list[list[int]]:
    """The windows that the model reads. Raises TextError if it would predict nothing."""
    from ..evaluation.evaluation import windows

    found = windows(ids, first, size)
    if not found:
        raise TextError(f"{name} has {len(ids)} tokens, {2 - len(first)} are needed; name a longer text")
    return found


@dataclass(frozen=True, slots=True)
class _Reader:
    """Lets one model after the other, all of the ``opened`` files, read ``windows`` of a text of ``length`` bytes."""

    opened: OpenedModel
    windows: Sequence[Sequence[int]]
    length: int
    bar: "Progress"

    def run(self, original: Config, tested: dict[str, Config]) -> list[dict[str, Any]]:
        """A row for the original, and one for each of ``tested``."""
        from ..evaluation.evaluation import predicted
        from ..evaluation.logits import KeptLogits

        name = _name(original.weights)
        if not tested:
            return [self._row(name, original, None, None, None)]
        with KeptLogits(original.store.path, predicted(self.windows)) as kept:
            first = self._row(name, original, None, kept, None)
            return [first, *(self._row(name, each, first, None, kept) for name, each in tested.items())]

    def _row(
        self,
        name: str,
        config: Config,
        original: dict[str, Any] | None,
        keep: "KeptLogits | None",
        against: "KeptLogits | None",
    ) -> dict[str, Any]:
        """The row of one model; relative to the ``original``'s row, unless it is the original itself."""
        from ..evaluation.evaluation import evaluate, predicted
        from ..loading.load import load_opened

        each = self.length / predicted(self.windows)
        model = load_opened(self.opened, config, self.bar)
        with closing(model.penstock):
            self.bar.start(f"{name}: reading the text", self.length)
            found = evaluate(
                model,
                self.windows,
                keep=keep,
                against=against,
                advance=lambda count: self.bar.advance(round(count * each)),
            )
            bundle = read_manifest(model.penstock.bundle)
        quality = found.quality
        return {
            "format": bundle.codec if original is None else name,
            "bytes": bundle.total_bytes,
            "size_ratio": bundle.total_bytes / original["bytes"] if original else 1.0,
            "tokens": quality.tokens,
            "perplexity": _finite(quality.perplexity),
            "perplexity_change": _change(quality.perplexity, original),
            "kl_divergence": _finite(quality.kl_divergence),
            "top1_agreement": quality.top1_agreement,
            "tokens_per_second": quality.tokens / found.seconds,
        }


def _finite(value: float) -> float | None:
    """``value``; None where it is infinite, for which JSON has no number: a token had the probability 0."""
    return value if math.isfinite(value) else None


def _change(perplexity: float, original: dict[str, Any] | None) -> float | None:
    """The relative increase of a perplexity over the original's; None where it is not finite."""
    if original is None:
        return 0.0
    return _finite(perplexity / original["perplexity"] - 1) if original["perplexity"] else None


def _print(report: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    print(
        f"{report['text']}: {rows[0]['tokens']} tokens predicted, in {report['windows']} windows of {report['context']}"
    )
    print_table(
        "",
        ["weights", "bytes", "of as-is", "perplexity", "change", "KL divergence", "same top token", "tokens/s"],
        [
            (
                row["format"],
                format_size(row["bytes"]),
                f"{row['size_ratio']:.1%}",
                _cell(row["perplexity"], ".3f"),
                _cell(row["perplexity_change"], "+.2%"),
                _cell(row["kl_divergence"], ".5f"),
                f"{row['top1_agreement']:.2%}",
                f"{row['tokens_per_second']:.1f}",
            )
            for row in rows
        ],
    )


def _cell(value: float | None, form: str) -> str:
    return "infinite" if value is None else format(value, form)
