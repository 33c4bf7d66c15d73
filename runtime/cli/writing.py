"""One text of a model, by transformers' own generate: shown as it comes, ended by stop strings, with a report."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers.generation.streamers import BaseStreamer

from ...tiering.errors import CheckpointError
from ...tiering.units import format_size
from ..checkpoints.files.failures import reason
from ..engine.stats import Stats
from ..serving.defaults import ends_of
from ..serving.sampling import Penalties
from ..serving.text.decoding import TokenText
from ..serving.text.stops import StopStrings
from .console import say, waiting
from .measure import peak_resident_bytes
from .sampling import SamplingOptions

_ONE = {"num_return_sequences": 1, "num_beam_groups": 1, "penalty_alpha": None, "prompt_lookup_num_tokens": None}
"""What the command has no option for: a model's own generation config does not multiply the work, as it does not choose
the width of beams."""
_OBJECTIONS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, ImportError, RuntimeError)
"""How transformers objects to a generation config."""

Ending = Literal["end", "stop", "length"]


@dataclass(frozen=True, slots=True)
class Writing:
    """How a text is written: at most ``room`` tokens, chosen as ``choice`` says, which are arguments of transformers'
    generate, and ``sampling``."""

    room: int
    choice: Mapping[str, Any]
    sampling: SamplingOptions
    stream: bool


@dataclass(frozen=True, slots=True)
class Written:
    """A text that is written, and what it took."""

    text: str
    ids: list[int]
    prompt_tokens: int
    ending: Ending
    """"end": the model ended it; "stop": a text to stop at came; "length": it is as long as it may be."""
    rate: float | None
    first: float
    stats: Stats
    peak: int

    @property
    def silent(self) -> bool:
        """Whether the first token has ended it."""
        return self.ending == "end" and len(self.ids) == 1

    def report(self) -> dict[str, Any]:
        """The fields of ``--json``: by part, then the flat names of earlier releases."""
        answer = {
            "text": self.text,
            "token_ids": self.ids,
            "prompt_tokens": self.prompt_tokens,
            "ending": self.ending,
        }
        timing = {"tokens_per_second": self.rate, "time_to_first_token_s": self.first}
        process = {"peak_rss_bytes": self.peak}
        grouped = {"answer": answer, "timing": timing, "process": process, **self.stats.parts()}
        return grouped | answer | timing | process | self.stats.report()

    def problems(self) -> list[str]:
        """What should be known about the run, in words."""
        kept, unbounded = self.stats.prefix_problem, self.stats.kv_unbounded_problem
        return [*([f"prompts are not kept: {kept}"] if kept else []), *([unbounded] if unbounded else [])]

    def say_summary(self) -> None:
        """Say what it took, where people read it."""
        if sys.stderr.isatty():
            say(_summary(self))


class Streamer(BaseStreamer):  # type: ignore[misc]
    """Is given tokens by transformers, and shows their text if it is to be ``shown``, up to a stop string."""

    def __init__(self, tokenizer: Any, stops: list[str], ends: frozenset[int], *, shown: bool) -> None:
        """``ends`` are tokens that end a text, and are no part of it."""
        self._ends = ends
        self._text, self._stops, self._shown = TokenText(tokenizer, special=False), StopStrings(stops), shown
        self._is_prompt = True

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._stops.found is not None

    def put(self, value: torch.Tensor) -> None:
        """First the prompt, then one token after the other."""
        if not self._is_prompt:
            for token in value.flatten().tolist():
                if token not in self._ends:
                    self.show(self._stops.feed(self._text.feed(token)))
        self._is_prompt = False

    def end(self) -> None:
        """There are no more."""
        self.show(self._stops.feed(self._text.end()) + self._stops.end() + "\n")

    def show(self, text: str) -> None:
        """Show some more text."""
        if self._shown and text:
            print(text, end="", flush=True)


def write(model: Any, tokenizer: Any, prompt: Mapping[str, torch.Tensor], wanted: Writing) -> Written:
    """Write the text that ``model`` gives behind ``prompt``: ``input_ids`` and ``attention_mask``, [1, tokens]."""
    if wanted.sampling.seed is not None:
        torch.manual_seed(wanted.sampling.seed)
    inputs = {name: tensor.to(model.device) for name, tensor in prompt.items()}
    prompt_tokens = inputs["input_ids"].shape[1]
    # transformers streams no beams: which of them wins is known at the end.
    live = wanted.choice["num_beams"] == 1
    ends = ends_of(model)
    streamer = Streamer(tokenizer, wanted.sampling.stop or [], ends, shown=wanted.stream and live)
    times: list[float] = []

    def note_time(ids: Any, scores: Any, **_: Any) -> Any:
        """A stopping criterion, called once for each new token, which stops at stop strings."""
        model.penstock.synchronize()
        times.append(time.perf_counter())
        return torch.full((ids.shape[0],), streamer.stopped, dtype=torch.bool, device=ids.device)

    start = time.perf_counter()
    with waiting(f"reading the prompt, {prompt_tokens} tokens") as prompt_read:

        def note_prompt(_: Any, scores: Any) -> Any:
            """A logits processor that changes nothing: it is called before the first token is shown."""
            prompt_read()
            _refuse_nan(model, scores)
            return scores

        try:
            output = model.generate(
                **inputs,
                max_new_tokens=wanted.room,
                stopping_criteria=[note_time],
                logits_processor=[note_prompt, *_penalties(wanted.sampling, prompt_tokens)],
                streamer=streamer if live else None,
                **_padding(model),
                **wanted.choice,
                **_ONE,
            )
        except BaseException as error:
            if live and wanted.stream:
                print(flush=True)  # the message gets a line of its own
            _explain(model, error)
            raise
    ids = output[0, prompt_tokens:].tolist()
    stops = StopStrings(wanted.sampling.stop or [])
    ended = ids[-1] in ends
    text = stops.feed(tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)) + stops.end()
    if wanted.stream and not live:
        print(text, flush=True)
    ending: Ending = "stop" if streamer.stopped else "end" if ended else "length"
    rate, first, stats = tokens_per_second(times), times[0] - start, model.penstock.stats()
    return Written(text, ids, prompt_tokens, ending, rate, first, stats, peak_resident_bytes())


def tokens_per_second(times: list[float]) -> float | None:
    """Speed of decoding: the tokens after the first, per second after the first. ``times``, one for each token, are in
    seconds. None for a single token, which is the prompt's."""
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None


def _penalties(sampling: SamplingOptions, prompt_tokens: int) -> list[Any]:
    presence, frequency = sampling.presence_penalty or 0.0, sampling.frequency_penalty or 0.0
    return [Penalties(presence, frequency, prompt_tokens)] if presence or frequency else []


def _padding(model: Any) -> dict[str, Any]:
    if model.generation_config.pad_token_id is not None:
        return {}
    ends = model.generation_config.eos_token_id
    return {"pad_token_id": ends[0] if isinstance(ends, list) else ends}


def _refuse_nan(model: Any, scores: Any) -> None:
    if scores.isnan().any():
        raise CheckpointError(
            f"{model.name_or_path} computes numbers that are none (NaN): its weights or its config.json are damaged; "
            "fetch the checkpoint again"
        )


def _explain(model: Any, error: BaseException) -> None:
    """Raise CheckpointError where ``error`` is transformers' objection to what the model says of generation."""
    if isinstance(error, _OBJECTIONS):
        raise CheckpointError(
            f"transformers cannot generate as generation_config.json of {model.name_or_path} says: {reason(error)}"
        ) from error


def _summary(written: Written) -> str:
    stats = written.stats
    rate = "" if written.rate is None else f"{written.rate:.1f}/s, "
    return (
        f"{len(written.ids)} tokens, {rate}first after {written.first:.2f} s; "
        f"{stats.hit_ratio:.0%} found in memory, "
        f"{format_size(stats.flash_bytes_read)} read, {stats.stall_seconds:.1f} s waited for the drive; "
        f"{_fineness(stats.products_by_planes)}"
        f"{format_size(stats.host_bytes)} of {format_size(stats.host_budget)} in use"
        + (f", {format_size(stats.device_bytes)} on the device" if stats.device_budget else "")
        + f"; {format_size(written.peak)} resident at most: torch and transformers take about 0.5 GB beside the budget"
    )


def _fineness(counts: Mapping[int, int]) -> str:
    """The share of experts computed with all planes, where that differs."""
    total, most = sum(counts.values()), max(counts, default=1)
    if most == 1:
        return ""
    return f"{counts[most] / total:.0%} of experts computed with {most} planes; "
