"""``penstock profile``: the experts that a text uses, and how well a cache of some of them works."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...tiering.errors import TextError, TraceError
from ..loading.opening import open_files, read_tokenizer
from ..loading.progress import shown
from ..tracing.tracefile import destination, write
from .console import print_json, quiet_libraries, say, waiting
from .options import Settings, SourceOptions
from .tables import print_table
from .text import WINDOW, beginning, encode, read_text, window_size

if TYPE_CHECKING:
    from ..config.config import Config
    from ..routing.routes import Routes

TOKENS = 4096
"""Default number of tokens of the text."""
LEAST = 16
"""Fewest tokens of a text that tell anything."""
MIDDLE = 16
"""Tokens of the segments by which layers are compared."""


def command(
    source: SourceOptions,
    text: Annotated[str, typer.Option("--text", metavar="FILE", help="What the model reads, in UTF-8.")],
    settings: Settings,
    tokens: Annotated[
        int | None,
        typer.Option("-n", "--tokens", metavar="N", min=LEAST, help=f"Tokens of it; else all, {TOKENS} at most."),
    ] = None,
    window: Annotated[
        int | None, typer.Option(metavar="N", min=2, help=f"Tokens that the model sees at a time; else {WINDOW}.")
    ] = None,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Keep the routing trace in this file.")] = None,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw hit rates against cache sizes (.svg, .png, .pdf).")
    ] = None,
) -> None:
    """Run a text through MODEL, record which experts each token uses, and report how well a cache of experts works."""
    config = settings.load()
    trace_file, picture = _destinations(out, plot)
    content = read_text(text)
    quiet_libraries()
    routes = _record(source, config, content, Path(text).name, tokens, window)
    if trace_file is not None:
        routes.save(trace_file)
    with waiting("looking at the routing"):
        from ..routing.suitability_report import report

        found = report(routes)
    if picture is not None:
        from ..routing.suitability_plot import draw

        write(picture, [draw(found, picture.suffix.removeprefix(".").lower())])
    if settings.json:
        print_json(found | {"out": trace_file and str(trace_file), "plot": picture and str(picture)})
    else:
        _print(found)
        for file in filter(None, (trace_file, picture)):
            say(f"written: {file}")


def _record(
    source: SourceOptions, config: "Config", content: str, name: str, tokens: int | None, window: int | None
) -> "Routes":
    """The routing trace of the text ``content``, called ``name``. Errors in it are found before the model is packed."""
    with shown() as bar:
        opened = open_files(source, config.store.path)
        _check_experts(opened.config, source)
        tokenizer = read_tokenizer(opened, "profile reads its text with one")
        ids = _encode(tokenizer, content, name, tokens)
        first = beginning(tokenizer)
        size = window_size(window, len(first), opened.positions, "--window")
        from ..loading.load import load_opened
        from ..routing.profiling import profile

        model = load_opened(opened, config, bar)
        with closing(model.penstock):
            each = len(tokenizer.decode(ids).encode()) / len(ids)
            bar.start("reading the text", round(len(ids) * each))

            def advance(count: int) -> None:
                bar.advance(round(count * each))

            return profile(model, ids, window=size, text=name, first=first, advance=advance)


def _destinations(out: str | None, plot: str | None) -> tuple[Path | None, Path | None]:
    """The files of trace and picture. Raises TraceError where one cannot be written or drawn, before anything runs."""
    if plot is not None:
        from ..routing.suitability_plot import check_plot

        check_plot(Path(plot))
    return destination(out) if out is not None else None, destination(plot) if plot is not None else None


def _check_experts(config: Any, source: SourceOptions) -> None:
    """Raise TraceError for a model without experts, before it is packed."""
    import torch

    from ..checkpoints.meta_model import build_meta_model
    from ..routing.profiling import experts_of

    if not experts_of(build_meta_model(config, torch.bfloat16, trust_remote_code=source.trust_remote_code)):
        raise TraceError(f"{source.model} has no experts that penstock streams one by one: there is nothing to profile")


def _encode(tokenizer: Any, content: str, name: str, wanted: int | None) -> list[int]:
    """The first tokens of ``content``. Raises TextError if it is short."""
    ids = encode(tokenizer, content, wanted or TOKENS)
    if len(ids) < (wanted or LEAST):
        raise TextError(
            f"{name} has {len(ids)} tokens, {wanted or LEAST} are needed; name a longer text"
            + (f", or ask for --tokens {len(ids)}" if wanted and len(ids) >= LEAST else "")
        )
    return ids


def _print(found: dict[str, Any]) -> None:
    print(
        f"{found['text']}: {found['tokens']} tokens in {found['sequences']} sequences; {found['model_type']}, "
        f"{found['layers']} layers of experts, {found['experts_per_token']} of {found['experts']} used per token"
    )
    segments = list(found["segment_routing"])
    print_table(
        "One group of experts for all tokens of a segment (SRP)",
        ["tokens in the segment", *map(str, segments)],
        [
            ("best F1", *(f"{found['segment_routing'][m]['f1']:.3f}" for m in segments)),
            ("its recall", *(f"{found['segment_routing'][m]['recall']:.3f}" for m in segments)),
            ("its size / experts per token", *(f"{found['segment_routing'][m]['size_ratio']:.2f}" for m in segments)),
        ],
    )
    print_table(
        "Uses that find their expert: the best cache for each segment of so many tokens (SCH), and real ones",
        ["experts kept", "share", "/ per token", *map(str, segments), "LRU", "LFU", "auto"],
        [
            (
                row["experts"],
                f"{row['share']:.1%}",
                f"{row['size_ratio']:.1f}",
                *(f"{row['segment_cache'][m]:.1%}" for m in segments),
                *(f"{row[name]:.1%}" if name in row else "" for name in ("lru", "lfu", "auto")),
            )
            for row in found["cache"]
        ],
    )
    if knee := found["knee"]:
        print(
            f"knee: {knee['experts']} experts, {knee['share']:.0%} of them, {knee['size_ratio']:.1f} times those of a "
            f"token, SCH {knee['segment_cache']:.1%}: {knee['rule']}"
        )
    middle = max(m for m in segments if m <= MIDDLE)
    print_table(
        "By layer, each with a cache of its own",
        ["layer", "evenness", "largest share", "router undecided", f"SRP {middle}", f"SCH {middle} of 1/4", "of 1/2"],
        [
            (
                row["path"],
                f"{row['entropy']:.3f}",
                f"{row['largest_share']:.1%}",
                "" if row["router_entropy"] is None else f"{row['router_entropy']:.3f}",
                f"{row['segment_routing'][middle]:.3f}",
                f"{row['segment_cache'][0.25][middle]:.1%}",
                f"{row['segment_cache'][0.5][middle]:.1%}",
            )
            for row in found["by_layer"]
        ],
    )
