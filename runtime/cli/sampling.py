"""The options that say how tokens are chosen, and where a text ends."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer

_GREEDY = "greedy decoding has no chance: leave it out, or give a temperature above 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen. What is None was left open."""

    temperature: Annotated[
        float | None, typer.Option(metavar="T", help="Sample; above 1 wilder, below 1 tamer; 0 is greedy.")
    ] = None
    top_p: Annotated[
        float | None, typer.Option(metavar="P", help="Sample from the likeliest tokens of this total.")
    ] = None
    top_k: Annotated[int | None, typer.Option(metavar="K", min=1, help="Sample from this many likeliest tokens.")] = (
        None
    )
    min_p: Annotated[
        float | None, typer.Option(metavar="P", help="Sample from tokens at least P times as likely as the likeliest.")
    ] = None
    seed: Annotated[int | None, typer.Option(metavar="N", min=0, max=2**63 - 1, help="Make sampling repeatable.")] = (
        None
    )
    repetition_penalty: Annotated[
        float | None, typer.Option(metavar="X", help="Above 1: tokens of prompt and text become less likely.")
    ] = None
    presence_penalty: Annotated[
        float | None, typer.Option(metavar="X", help="Taken from the logit of each token that the text has.")
    ] = None
    frequency_penalty: Annotated[
        float | None, typer.Option(metavar="X", help="Taken once for each time that the text has it.")
    ] = None
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text. Repeat it for several.")
    ] = None

    def check(self) -> None:
        """Raises BadParameter for values that mean nothing."""
        _within("--temperature", self.temperature, 0.0, 100.0)
        _within("--top-p", self.top_p, 0.0, 1.0, above=True)
        _within("--min-p", self.min_p, 0.0, 1.0)
        _within("--repetition-penalty", self.repetition_penalty, 0.0, 100.0, above=True)
        _within("--presence-penalty", self.presence_penalty, -100.0, 100.0)
        _within("--frequency-penalty", self.frequency_penalty, -100.0, 100.0)
        if any(not text for text in self.stop or ()):
            raise typer.BadParameter("a text to stop at has at least one character", param_hint="--stop")
        if self.temperature == 0:
            for name, value in (*self._chances().items(), ("--seed", self.seed)):
                if value is not None:
                    raise typer.BadParameter(_GREEDY, param_hint=name)

    @property
    def samples(self) -> bool:
        """Whether anything asks for chance."""
        return bool(self.temperature) or any(value is not None for value in self._chances().values())

    def for_transformers(self) -> dict[str, Any]:
        """Arguments for transformers' generate: greedy unless something asks for sampling. They replace all that the
        model's own generation config says about it. Raises BadParameter."""
        self.check()
        kept = {} if self.repetition_penalty is None else {"repetition_penalty": self.repetition_penalty}
        if self.samples:
            return kept | {
                "do_sample": True,
                "temperature": self.temperature or 1.0,
                "top_p": self.top_p or 1.0,
                "top_k": self.top_k or 0,
                "min_p": self.min_p,
            }
        if self.seed is not None:
            raise typer.BadParameter(
                "only sampling has chance: add --temperature, --top-p or --top-k", param_hint="--seed"
            )
        return kept | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "min_p": None}

    def given(self) -> dict[str, float | None]:
        """By the names of Sampling, without the seed."""
        names = ("temperature", "top_p", "top_k", "min_p", *_PENALTIES)
        return {name: getattr(self, name) for name in names}

    def _chances(self) -> dict[str, float | None]:
        return {"--top-p": self.top_p, "--top-k": self.top_k, "--min-p": self.min_p}


_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


def _within(option: str, value: float | None, least: float, most: float, *, above: bool = False) -> None:
    if value is None or (least < value <= most or (value == least and not above)):
        return
    low = f"above {least:g}" if above else f"at least {least:g}"
    raise typer.BadParameter(f"it is {low} and at most {most:g}", param_hint=option)
