"""Quality against size: perplexity and KL divergence of a model in weight formats, each evaluated by `penstock eval`.

    python bench/formats.py MODEL --text FILE [--sizes 3.5MB 4.5MB ...] [--plot FILE.svg] [--json FILE]

Formats of one size for all matrices are compared with `fit:SIZE` at the sizes given. Nothing here is timed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from report import Table, publish

FORMATS = ("lossless", "int8", "nested", "stacked", "int4-32", "int4-64", "int4-128")


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Run `penstock eval` for all formats and sizes, and give back what it prints."""
    command = [sys.executable, "-c", "from penstock.runtime.cli.main import run; run()", "eval", str(options.model)]
    command += [
        "--text",
        str(options.text),
        "--tokens",
        str(options.tokens),
        "--context",
        str(options.context),
        "--json",
    ]
    command += ["--compare", ",".join((*FORMATS, *(f"fit:{size}" for size in options.sizes)))]
    command += ["--store", options.store] if options.store else []
    done: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return done


def plot(found: list[dict[str, Any]], original: dict[str, Any], path: Path) -> None:
    """Draw the KL divergence against the size."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for each in found:
        dialled = each["format"].startswith("fit:")
        at = each["bytes"] / original["bytes"], max(each["kl_divergence"], 1e-5)
        axes.plot(*at, "x" if dialled else "o", color="C1" if dialled else "C0")
        if not dialled:
            axes.annotate(each["format"], at, xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(yscale="log", xlabel="bytes, of those as they are", ylabel="KL divergence, nats (1e-5: none)")
    axes.set_title("one format for all (o), and fit:SIZE (x)", fontsize=9)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Evaluate all formats and sizes, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--sizes", nargs="*", default=[], help="sizes of the whole bundle for fit:SIZE")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--store", help="where bundles are kept")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    found = evaluate(options)
    rows = [
        (
            each["format"],
            f"{each['bytes'] / 1e6:.2f}",
            f"{each['size_ratio']:.1%}",
            f"{each['perplexity']:.3f}",
            f"{each['perplexity_change']:+.2%}",
            f"{each['kl_divergence']:.5f}",
            f"{each['top1_agreement']:.1%}",
        )
        for each in found["formats"]
    ]
    columns = ("format", "MB", "of as-is", "perplexity", "", "KL divergence", "same top token")
    table = Table(f"{options.model.name}, {found['formats'][0]['tokens']} tokens", columns, rows)
    publish([table], found, json_file=options.json, markdown=options.markdown)
    if options.plot:
        plot(found["formats"], found["original"], options.plot)


if __name__ == "__main__":
    main()
