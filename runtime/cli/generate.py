"""``penstock generate``: answer a prompt, or continue a text, streaming what is written as it comes."""

from contextlib import closing, nullcontext
from typing import Annotated

import typer

from ...tiering.errors import PromptTooLong
from ..loading.opening import open_files, read_tokenizer
from ..loading.progress import shown
from ..tracing.tracefile import destination
from .console import importing, print_json, say
from .options import Settings, SourceOptions, TraceFile
from .prompts import PromptOptions
from .sampling import SamplingOptions

TOKENS = 128
"""Default number of new tokens of a text that is continued."""
ANSWER_TOKENS = 1024
"""The same of an answer in a chat, which ends by itself."""


def command(
    source: SourceOptions,
    prompt: PromptOptions,
    settings: Settings,
    sampling: SamplingOptions,
    tokens: Annotated[
        int | None,
        typer.Option(
            "-n", "--tokens", metavar="N", min=1, help=f"Most new tokens; else {ANSWER_TOKENS}, or {TOKENS} with --raw."
        ),
    ] = None,
    beams: Annotated[int, typer.Option(metavar="N", min=1, help="Beam search of this width.")] = 1,
    trace: TraceFile = None,
) -> None:
    """Answer a prompt with MODEL, or continue it as plain text where the model has no chat template: greedily, unless
    you ask for sampling or beams."""
    choice = sampling.for_transformers()
    if beams > 1 and sampling.stop:
        raise typer.BadParameter("beams are not text before the end; leave one of them out", param_hint="--stop")
    config = settings.load()
    if trace is not None:
        destination(trace)  # what cannot be written is said before anything is packed
    text = prompt.read()
    with importing():
        from ..loading.load import load_opened
        from .writing import Writing, write

    with shown() as bar:
        opened = open_files(source, config.store.path)
        tokenizer = read_tokenizer(opened, "generate reads its prompt with one")
        encoded = prompt.encode(tokenizer, text)
        room = room_for(encoded.tokens, tokens, opened.positions, ANSWER_TOKENS if encoded.as_chat else TOKENS)
        model = load_opened(opened, config, bar)
    wanted = Writing(room, choice | {"num_beams": beams}, sampling, stream=not settings.json)
    with closing(model.penstock), nullcontext() if trace is None else model.penstock.trace(trace):
        written = write(model, tokenizer, encoded.inputs, wanted)
    if settings.json:
        print_json(written.report())
        return
    if written.silent:
        say(f"penstock: note: {encoded.explain_silence()}")
    for problem in written.problems():
        say(f"penstock: note: {problem}")
    written.say_summary()


def room_for(prompt_tokens: int, wanted: int | None, positions: int | None, usual: int = TOKENS) -> int:
    """The number of tokens to generate: ``wanted``, or by default ``usual``, as far as they fit.

    Raises PromptTooLong when the model has not enough positions. The last new token needs none: it is not fed back.
    """
    if positions is None:
        return wanted or usual
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
    return wanted or min(usual, room)
