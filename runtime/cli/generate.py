"""``penstock generate``: continue a prompt, streaming the text as it comes."""

import sys
import time
from collections.abc import Mapping
from contextlib import closing, nullcontext
from typing import Annotated, Any

import typer

from ...tiering.errors import CheckpointError, PromptTooLong
from ...tiering.units import format_size
from ..checkpoints.files.failures import reason
from ..loading.opening import open_files, read_tokenizer
from ..loading.progress import shown
from ..tracing.tracefile import destination
from .console import importing, print_json, say, waiting
from .measure import peak_resident_bytes
from .options import Settings, SourceOptions, TraceFile
from .text import tokenizing

TOKENS = 128
"""Default number of new tokens."""

_ONE = {"num_return_sequences": 1, "num_beam_groups": 1, "penalty_alpha": None, "prompt_lookup_num_tokens": None}
"""What the command has no option for: a model's own generation config does not multiply the work, as it does not choose
the width of beams."""
_OBJECTIONS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, ImportError, RuntimeError)
"""How transformers objects to a generation config."""


def command(
    source: SourceOptions,
    prompt: Annotated[str, typer.Option("-p", "--prompt", metavar="TEXT", help='Text to continue; "-" reads stdin.')],
    settings: Settings,
    tokens: Annotated[
        int | None, typer.Option("-n", "--tokens", metavar="N", min=1, help=f"Most new tokens; else {TOKENS}.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="T", help="Sample; above 1 wilder, below 1 tamer.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(metavar="P", help="Sample from the likeliest tokens of this total.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="K", min=1, help="Sample from this many likeliest tokens.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, max=2**63 - 1, help="Make sampling repeatable.")
    ] = None,
    beams: Annotated[int, typer.Option(metavar="N", min=1, help="Beam search of this width.")] = 1,
    trace: TraceFile = None,
) -> None:
    """Continue a prompt with MODEL: greedily, unless you ask for sampling or beams."""
    choice = _sampling(temperature, top_p, top_k, seed)
    config = settings.load()
    if trace is not None:
        destination(trace)  # what cannot be written is said before anything is packed
    text = sys.stdin.read() if prompt == "-" else prompt
    with importing():
        from ..loading.load import load_opened

    with shown() as bar:
        opened = open_files(source, config.store.path)
        tokenizer = read_tokenizer(opened, "generate reads its prompt with one")
        inputs = _encode(tokenizer, text)
        room = room_for(inputs["input_ids"].shape[1], tokens, opened.positions)
        model = load_opened(opened, config, bar)
    with closing(model.penstock), nullcontext() if trace is None else model.penstock.trace(trace):
        report = _run(
            model, tokenizer, inputs, room, choice | {"num_beams": beams, **_ONE}, seed, stream=not settings.json
        )
    if settings.json:
        print_json(report)
    elif sys.stderr.isatty():
        say(_summary(report))
    if report["prefix_problem"] and not settings.json:
        say(f"penstock: note: prompts are not kept: {report['prefix_problem']}")
    if report["kv_unbounded_problem"] and not settings.json:
        say(f"penstock: note: {report['kv_unbounded_problem']}")


def room_for(prompt_tokens: int, wanted: int | None, positions: int | None) -> int:
    """The number of tokens to generate: ``wanted``, or by default as many as fit.

    Raises PromptTooLong when the model has not enough positions. The last new token needs none: it is not fed back.
    """
    if positions is None:
        return wanted or TOKENS
    room = positions - prompt_tokens + 1
    if room < 1:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens, the model has {positions} positions; shorten the prompt"
        )
    if wanted and wanted > room:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens and {wanted} more are wanted, the model has {positions} positions; "
            f"shorten the prompt or ask for at most -n {room}"
        )
    return wanted or min(TOKENS, room)


def _sampling(temperature: float | None, top_p: float | None, top_k: int | None, seed: int | None) -> dict[str, Any]:
    """Arguments for transformers' generate. They replace all that the model's own generation config says about
    sampling."""
    if temperature is not None and not 0 < temperature < float("inf"):
        raise typer.BadParameter("it is above 0; leave it out for greedy decoding", param_hint="--temperature")
    if top_p is not None and not 0 < top_p <= 1:
        raise typer.BadParameter("it is above 0 and at most 1", param_hint="--top-p")
    if temperature is None and top_p is None and top_k is None:
        if seed is not None:
            raise typer.BadParameter(
                "only sampling has chance: add --temperature, --top-p or --top-k", param_hint="--seed"
            )
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": temperature or 1.0, "top_p": top_p or 1.0, "top_k": top_k or 0}


def _encode(tokenizer: Any, text: str) -> Any:
    """``input_ids`` and ``attention_mask``, int64, [1, tokens]."""
    with tokenizing(tokenizer):
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    if inputs["input_ids"].shape[1]:
        return inputs
    if tokenizer.bos_token is None:
        raise typer.BadParameter(
            "the prompt is empty, and this model has no token to begin a text with", param_hint="-p"
        )
    return tokenizer(tokenizer.bos_token, return_tensors="pt", return_token_type_ids=False, add_special_tokens=False)


def _run(
    model: Any, tokenizer: Any, inputs: Any, room: int, choice: dict[str, Any], seed: int | None, *, stream: bool
) -> dict[str, Any]:
    """Generate, and return the fields of ``--json``."""
    import torch
    from transformers import TextStreamer

    if seed is not None:
        torch.manual_seed(seed)
    inputs = inputs.to(model.device)
    prompt_tokens = inputs["input_ids"].shape[1]
    # transformers streams no beams: which of them wins is known at the end.
    live = stream and choice["num_beams"] == 1
    if live:
        choice["streamer"] = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    if model.generation_config.pad_token_id is None:
        ends = model.generation_config.eos_token_id
        choice["pad_token_id"] = ends[0] if isinstance(ends, list) else ends
    times: list[float] = []

    def note_time(ids: Any, scores: Any, **_: Any) -> Any:
        """A stopping criterion that never stops: it is called once for each new token."""
        model.penstock.synchronize()
        times.append(time.perf_counter())
        return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

    start = time.perf_counter()
    with waiting(f"reading the prompt, {prompt_tokens} tokens") as prompt_read:

        def note_prompt(_: Any, scores: Any) -> Any:
            """A logits processor that changes nothing: it is called before the first token is shown."""
            prompt_read()
            _refuse_nan(model, scores)
            return scores

        try:
            output = model.generate(
                **inputs, max_new_tokens=room, stopping_criteria=[note_time], logits_processor=[note_prompt], **choice
            )
        except BaseException as error:
            if live:
                print(flush=True)  # the message gets a line of its own
            _explain(model, error)
            raise
    ids = output[0, prompt_tokens:].tolist()
    text = tokenizer.decode(ids, skip_special_tokens=True)
    if stream and not live:
        print(text, flush=True)
    return {
        "text": text,
        "token_ids": ids,
        "prompt_tokens": prompt_tokens,
        "tokens_per_second": tokens_per_second(start, times),
        "time_to_first_token_s": times[0] - start,
        **model.penstock.stats().report(),
        "peak_rss_bytes": peak_resident_bytes(),
    }


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


def tokens_per_second(start: float, times: list[float]) -> float:
    """Speed of decoding: the tokens after the first, per second after the first. Of a single token, one over its
    time. ``start`` and ``times``, one for each token, are in seconds."""
    if len(times) == 1:
        return 1 / (times[0] - start)
    return (len(times) - 1) / (times[-1] - times[0])


def _summary(report: dict[str, Any]) -> str:
    return (
        f"{len(report['token_ids'])} tokens, {report['tokens_per_second']:.1f}/s, "
        f"first after {report['time_to_first_token_s']:.2f} s; {report['hit_ratio']:.0%} found in memory, "
        f"{format_size(report['flash_bytes_read'])} read, {report['stall_s']:.1f} s waited for the drive; "
        f"{_fineness(report['products_by_planes'])}"
        f"{format_size(report['host_bytes'])} of {format_size(report['host_budget'])} in use"
        + (f", {format_size(report['device_bytes'])} on the device" if report["device_budget"] else "")
    )


def _fineness(counts: Mapping[int, int]) -> str:
    """The share of experts computed with all planes, where that differs."""
    total, most = sum(counts.values()), max(counts, default=1)
    if most == 1:
        return ""
    return f"{counts[most] / total:.0%} of experts computed with {most} planes; "
