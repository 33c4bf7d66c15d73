"""Counts what certified attention reads, and checks its certificates: summaries of keys on rows of attention.

    python bench/certified.py [--model examples/tiny-moe] [--text FILE] [--plot FILE.svg] [--json FILE]

Rows are those of a model that reads a text (by default this repository's own documents), up to the positions it has,
and random ones up to 8192 tokens of context. For each kind of summary and size of page:

slack      the upper bound of a page's log-mass less its true value in float64, nats, mean over rows and pages
outside    rows and pages whose true value is outside of the bounds: with scores as they are, and as eager attention
           rounds them
pages      share of the pages that a step reads so that no head omits more than epsilon (all heads read a page together)
alone      the same for one head by itself, in the order of its bounds, as a mean over heads
omitted    the greatest true share that a head's unread pages have, over epsilon (above 1 a certificate is wrong)

"oracle" knows every page's true value. Nothing is timed.
"""

import argparse
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from attention_rows import Steps, isotropic, of_model, peaked
from report import Table, publish

from penstock.kernels.kv.certify import PageMasses
from penstock.kernels.kv.summaries.base import Bounds, Summary
from penstock.kernels.kv.summaries.registry import SUMMARIES
from penstock.tiering.kv.selection.certificate import Certificate, select

ROOT = Path(__file__).parents[1]
EPSILONS = (1e-2, 1e-3, 1e-4)
PAGES = (16, 32, 64)
MODEL_CONTEXTS = (256, 512, 1024)
RANDOM_CONTEXTS = (256, 512, 1024, 2048, 4096, 8192)
PLOTTED = 1e-3
ORACLE = "oracle"
SHARED = 16
"""Pages, the first ones, that a summary is fitted to."""


class Tally:
    """Sums over the steps of one case."""

    def __init__(self) -> None:
        self.steps = self.rows = self.bounds = self.outside = self.broken = 0
        self.slack = self.bytes_per_token = 0.0
        self.share = dict.fromkeys(EPSILONS, 0.0)
        self.alone = dict.fromkeys(EPSILONS, 0.0)
        self.rounds = dict.fromkeys(EPSILONS, 0)
        self.omitted = dict.fromkeys(EPSILONS, 0.0)

    def add(self, bounds: Bounds, masses: torch.Tensor, outside: torch.Tensor) -> None:
        """Add one step: bounds and true log-masses [Hq, 1, n], and the scores [Hq, 1, ..] of tokens outside of
        pages."""
        self.steps += 1
        self.rows += len(masses)
        for epsilon in EPSILONS:
            certificate = select_pages(bounds, masses, outside, epsilon)
            share = share_omitted(certificate.pages, masses, outside)
            self.share[epsilon] += len(certificate.pages) / masses.shape[-1]
            self.rounds[epsilon] += certificate.rounds
            self.omitted[epsilon] = max(self.omitted[epsilon], share / epsilon)
            self.broken += share > certificate.most * (1 + 1e-6)
            self.alone[epsilon] += share_alone(bounds, masses, outside, epsilon)

    def summary(self) -> dict[str, Any]:
        """The means of all steps, for JSON."""
        return {
            "rows": self.rows,
            "slack": self.slack / max(1, self.bounds),
            "outside": self.outside,
            "broken": self.broken,
            "bytes_per_token": self.bytes_per_token,
            "pages": {str(epsilon): share / self.steps for epsilon, share in self.share.items()},
            "alone": {str(epsilon): share / self.steps for epsilon, share in self.alone.items()},
            "rounds": {str(epsilon): rounds / self.steps for epsilon, rounds in self.rounds.items()},
            "omitted_over_epsilon": {str(epsilon): most for epsilon, most in self.omitted.items()},
        }


def log_masses(scores: torch.Tensor, tokens: int, count: int) -> torch.Tensor:
    """Compute the log-masses [Hq, S, count] in float64 of the first ``count`` pages of ``tokens`` tokens."""
    return torch.unflatten(scores[..., : count * tokens].double(), -1, (count, tokens)).logsumexp(-1)


def scores(steps: Steps) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the scores [Hq, S, T] in float64, and again with the roundings of eager attention."""
    keys = steps.keys.repeat_interleave(len(steps.query) // len(steps.keys), 0)
    return (steps.query.double() @ keys.double().mT) * steps.scaling, (steps.query @ keys.mT) * steps.scaling


def select_pages(bounds: Bounds, masses: torch.Tensor, outside: torch.Tensor, epsilon: float) -> Certificate:
    """Select pages as certified attention does, with the bounds as all it knows at first."""
    known = PageMasses(bounds)
    if outside.shape[-1]:
        known.add_outside(outside)
    choice = select(known, epsilon=epsilon)
    while True:
        try:
            batch = next(choice)
        except StopIteration as end:
            certificate: Certificate = end.value
            return certificate
        pages = [page for run in batch for page in run.pages]
        known.add(pages, masses[..., pages])


def share_omitted(pages: Iterable[int], masses: torch.Tensor, outside: torch.Tensor) -> float:
    """Compute the greatest share that all pages but these have, over all heads."""
    read = torch.zeros(masses.shape[-1], dtype=torch.bool)
    read[list(pages)] = True
    whole = torch.cat([masses, outside.double()], -1).logsumexp(-1)
    return float((masses[..., ~read].logsumexp(-1) - whole).exp().max()) if not read.all() else 0.0


def share_alone(bounds: Bounds, masses: torch.Tensor, outside: torch.Tensor, epsilon: float) -> float:
    """Compute the share of pages after which the unread ones have at most epsilon of the whole, as a mean over
    heads."""
    upper, order = bounds.upper.double()[:, 0].sort(-1, descending=True)
    none = torch.full((len(upper), 1), -torch.inf, dtype=torch.float64)
    unread = torch.cat([upper.flip(-1).logcumsumexp(-1).flip(-1), none], -1)
    tail = torch.cat([none, outside.double()[:, 0]], -1).logsumexp(-1, keepdim=True)
    read = torch.cat([tail, masses[:, 0].gather(-1, order)], -1).logcumsumexp(-1)
    omitted = (unread - torch.logaddexp(unread, read)).exp() <= epsilon
    return float(omitted.to(torch.uint8).argmax(-1).float().mean() / upper.shape[-1])


def measure(cases: Iterable[Steps], tokens: int) -> dict[str, dict[str, Any]]:
    """Measure each kind of summary over all steps, with pages of ``tokens`` tokens."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    for steps in cases:
        count = steps.seen(0) // tokens
        real, rounded = scores(steps)
        true, masses = log_masses(real, tokens, count), log_masses(rounded, tokens, count)
        for name, tally in ((name, tallies[name]) for name in (*SUMMARIES, ORACLE)):
            if name == ORACLE:
                bounds = Bounds(masses, masses)
            else:
                bounds, tally.bytes_per_token = bound_pages(SUMMARIES[name], steps, tokens, count)
                tally.slack += float((bounds.upper - true).sum())
                tally.bounds += true.numel()
                tally.outside += sum(
                    int(((bounds.upper < each) | (bounds.lower > each)).sum()) for each in (true, masses)
                )
            for step in range(steps.query.shape[1]):
                now = slice(step, step + 1)
                outside = rounded[:, now, count * tokens : steps.seen(step)]
                tally.add(Bounds(bounds.lower[:, now], bounds.upper[:, now]), masses[:, now], outside)
    return {name: tally.summary() for name, tally in tallies.items()}


def bound_pages(kind: Summary, steps: Steps, tokens: int, count: int) -> tuple[Bounds, float]:
    """Compute the bounds of the first ``count`` pages, and the bytes in memory for each of their tokens."""
    heads = len(steps.keys)
    fitted = kind.fit(steps.keys[:, : SHARED * tokens])
    summaries = fitted.build(torch.unflatten(steps.keys[:, : count * tokens], 1, (count, tokens)).transpose(0, 1))
    bounds = fitted.log_bounds(steps.query, summaries, heads=heads, tokens=tokens, scaling=steps.scaling)
    return bounds, (summaries.shape[1] + fitted.shared_bytes / count) / tokens


def sources(options: argparse.Namespace, text: str) -> Iterator[tuple[str, int, list[Steps]]]:
    """Yield name, context, and steps of each kind of rows."""
    for context in MODEL_CONTEXTS:
        more = {"windows": options.windows, "per_window": options.per_window}
        yield options.model.name, context, list(of_model(options.model, text, context, **more))
    for context in RANDOM_CONTEXTS:
        for make in (isotropic, peaked):
            yield make.__name__, context, list(make(context, steps=options.steps, dim=options.dim, seed=context))


def tables(found: list[dict[str, Any]], largest: dict[str, int]) -> Iterator[Table]:
    """Make a table for each source, at its longest context."""
    columns = (
        "page",
        "summary",
        "bytes/token",
        "slack",
        "outside",
        *(f"pages {e:g}" for e in EPSILONS),
        f"alone {PLOTTED:g}",
        "rounds",
        "omitted",
    )
    for source, context in largest.items():
        rows = [
            (
                str(each["page"]),
                each["summary"],
                f"{each['bytes_per_token']:.1f}" if each["bytes_per_token"] else "",
                f"{each['slack']:.2f}" if each["bytes_per_token"] else "",
                str(each["outside"]) if each["bytes_per_token"] else "",
                *(f"{each['pages'][str(epsilon)]:.1%}" for epsilon in EPSILONS),
                f"{each['alone'][str(PLOTTED)]:.1%}",
                f"{each['rounds'][str(PLOTTED)]:.2f}",
                f"{max(each['omitted_over_epsilon'].values()):.2f}",
            )
            for each in found
            if each["source"] == source and each["context"] == context
        ]
        yield Table(f"{source}, context {context}", columns, rows)


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Draw the pages read against the context into ``path``."""
    from matplotlib import pyplot

    names = list(dict.fromkeys(each["source"] for each in found))
    figure, all_axes = pyplot.subplots(1, len(names), figsize=(9, 3.2), sharey=True)
    for axes, source in zip(all_axes, names, strict=True):
        for kind in (*SUMMARIES, ORACLE):
            mine = [e for e in found if (e["source"], e["summary"], e["page"]) == (source, kind, PAGES[-1])]
            style = "k--" if kind == ORACLE else "o-"
            axes.plot(
                [e["context"] for e in mine], [100 * e["pages"][str(PLOTTED)] for e in mine], style, ms=3, label=kind
            )
        axes.set(xlabel="tokens of context", ylim=(0, 103))
        axes.set_xscale("log", base=2)
        axes.set_title(source, fontsize=9)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel(f"pages read, %, epsilon {PLOTTED:g}")
    all_axes[-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Measure all summaries on all rows, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "tiny-moe")
    parser.add_argument("--text", type=Path, help="for the model to read")
    parser.add_argument("--windows", type=int, default=4, help="of the text")
    parser.add_argument(
        "--per-window", type=int, default=12, help="tokens of each window that are measured, in each layer"
    )
    parser.add_argument("--steps", type=int, default=40, help="of each kind of random rows and context")
    parser.add_argument("--dim", type=int, default=64, help="of random rows")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    own = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])
    text = options.text.read_text() if options.text else "\n".join(path.read_text() for path in own)
    found: list[dict[str, Any]] = []
    largest: dict[str, int] = {}
    for (source, context, steps), tokens in itertools.product(sources(options, text), PAGES):
        largest[source] = context
        for name, each in measure(steps, tokens).items():
            found.append({"source": source, "context": context, "page": tokens, "summary": name, **each})
    rows = sum(each["rows"] for each in found if (each["summary"], each["page"]) == (ORACLE, PAGES[0]))
    publish(
        list(tables(found, largest)), {"rows": rows, "cases": found}, json_file=options.json, markdown=options.markdown
    )
    wrong = sum(each["outside"] + each["broken"] for each in found)
    print(f"{rows} rows; {wrong} bounds or certificates that do not hold")
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
