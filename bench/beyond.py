"""How fast models would be that do not fit here, on described laptops and workstations: docs/explanation/beyond.md.

    python bench/beyond.py --update docs/explanation/beyond.md --plot docs/images/beyond.svg [--json beyond.json]

Nothing is measured, fetched or computed: every figure comes from the planner of real runs, simulated as ``penstock
plan`` does, for the models of big_models.py on the machines of machines.py. Equal descriptions give equal figures.
Takes some minutes of one core. --update puts the tables between the marks of that file. --plot needs matplotlib.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

from big_models import MODELS
from cases import CHANGES, ELSEWHERE, Case, Figure, cases, choose_cases, curve_of, name_of, outline_of, simulate_case
from machines import MACHINES
from report import Table, publish

from penstock.tiering.planner.arrangement import MemoryBudgets, least_host
from penstock.tiering.policy.placement.budgets import ENOUGH, enough
from penstock.tiering.units import GiB, format_size

ABOVE = 1.1
"""Share of the limit above which a figure must be wrong. Counted tokens may use bytes that earlier ones have read."""

# --- tables -----------------------------------------------------------------------------------------------------------


def format_number(value: float) -> str:
    """Format with two significant digits, or three for numbers from ten on."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:#.2g}"


def models_table() -> Table:
    """List the models with their sizes."""
    rows = []
    for model in MODELS.values():
        parameters = sum(weight.numel() for weight in model.skeleton().parameters()) / 1e9
        for packed in (False, True) if model.packed else (False,):
            outline = outline_of(model, packed, 1)
            dense = sum(block.length for block in outline.blocks if block.id.kind == "dense")
            routed = " and ".join({f"{layer.per_token} of {layer.experts}" for layer in outline.layers})
            rows.append(
                (
                    name_of(Case(model, MACHINES[0], packed)),
                    f"{parameters:.1f}",
                    f"{outline.total_bytes / 1e9:.0f}",
                    f"{dense / 1e9:.1f}",
                    f"{len(outline.layers)} x {routed}" if routed else "none",
                    format_size(least_host(outline, MemoryBudgets(0))),
                )
            )
    columns = ("", "parameters, 10^9", "GB", "of these dense", "layers x experts of a token", "the least that runs")
    return Table("Models", columns, rows)


def machines_table() -> Table:
    """List the machines with their speeds."""
    rows = [
        (
            machine.name,
            f"{machine.bandwidth / 1e9:.0f}",
            f"{machine.memory_speed / 1e9:.0f}",
            str(machine.cores),
            f"{machine.flops / 1e12:g}",
            " + ".join([f"{machine.drive_speed / 1e9:g}"] * machine.drives),
            format_size(machine.host_memory(1 << 60)),
        )
        for machine in MACHINES
    ]
    columns = (
        "",
        "memory, GB/s nominal",
        "read by products",
        "cores",
        "TFLOP/s of a prompt",
        "drives, GB/s",
        "budget",
    )
    return Table("Machines", columns, rows)


def figures_table(name: str, found: Sequence[tuple[Case, Figure]]) -> Table:
    """List the figures of the model ``name`` on each machine."""
    rows = []
    for case, figure in found:
        forecast = figure.forecast
        rows.append(
            (
                case.machine.name,
                format_size(figure.host_memory),
                format_number(forecast.tokens_per_second),
                format_number(forecast.time_to_first_token_s),
                format_number(forecast.flash_bytes_per_token / 1e9),
                format_number(figure.used / 1e9),
                f"{forecast.hit_ratio:.0%}",
                forecast.limited_by,
                format_number(figure.limit),
                f"{figure.of_limit:.0%}",
            )
        )
    columns = (
        "",
        "budget",
        "tokens/s",
        "first token, s",
        "GB read per token",
        "GB used",
        "hits",
        "limited by",
        "limit by hand, tokens/s",
        "of it",
    )
    return Table(name, columns, rows)


def figures_tables(found: Sequence[tuple[Case, Figure]]) -> list[Table]:
    """Make a table for each model."""
    names = dict.fromkeys(name_of(case) for case, _ in found)
    return [figures_table(name, [each for each in found if name_of(each[0]) == name]) for name in names]


def elsewhere_table() -> Table:
    """Compare runs of another engine, on machines whose owners measured their drives, with simulated ones of
    penstock."""
    rows = []
    for elsewhere in ELSEWHERE:
        figure = simulate_case(elsewhere.case)
        hits = f"{figure.forecast.hit_ratio:.0%}"
        speed = format_number(figure.forecast.tokens_per_second)
        rows.append((elsewhere.what, elsewhere.reported, elsewhere.hits, speed, hits, elsewhere.where))
    return Table("GLM-5.2, int4", ("", "reported, tokens/s", "hits", "simulated, tokens/s", "hits", "source"), rows)


def show_difference(before: Figure, after: Figure) -> str:
    """Format the relative change in tokens per second."""
    if before.forecast == after.forecast:
        return "none"
    change = after.forecast.tokens_per_second / before.forecast.tokens_per_second - 1
    return f"{round(change, 2) + 0.0:+.0%}"


def weights_table(some: Sequence[Case]) -> Table:
    """Show how much each assumption changes the speed."""
    speeds = {what: [simulate_case(change(case)) for case in some] for what, change in CHANGES.items()}
    base = speeds["as assumed"]
    rows = [("as assumed", *(format_number(figure.forecast.tokens_per_second) for figure in base))]
    for what, figures in [*speeds.items()][1:]:
        rows.append((what, *(show_difference(*pair) for pair in zip(base, figures, strict=True))))
    last = speeds["neither that, nor any time besides weights"]
    rows.append(("the row above, of its limit by hand", *(f"{figure.of_limit:.0%}" for figure in last)))
    columns = ("tokens/s", *(f"{name_of(case)}; {case.machine.name}" for case in some))
    return Table("What the assumptions weigh", columns, rows)


def pays_table(curves: Sequence[tuple[Case, Sequence[Figure]]]) -> Table:
    """Show from which budget on more memory stops paying."""
    rows = []
    for case, figures in curves:
        speeds = {figure.host_memory: figure.forecast.tokens_per_second for figure in figures}
        point = enough([*speeds.items()])
        total = outline_of(case.model, case.packed, case.machine.drives).total_bytes
        first, last = min(speeds), max(speeds)
        rows.append(
            (
                name_of(case),
                f"{format_number(speeds[first])} with {format_size(first)}",
                f"{format_number(speeds[point])} with {format_size(point)}",
                f"{point / total:.0%}",
                f"{format_number(speeds[last])} with {format_size(last)}",
            )
        )
    columns = ("tokens/s", "the least that runs", f"{ENOUGH:.0%} of the best", "of the weights", "everything")
    return Table("Where more memory stops paying", columns, rows)


def find_implausible(found: Sequence[tuple[Case, Figure]]) -> list[str]:
    """Name the figures that are above the limit computed by hand."""
    return [f"{name_of(case)}; {case.machine.name}" for case, figure in found if figure.of_limit > ABOVE]


# --- output -----------------------------------------------------------------------------------------------------------


def plot(curves: Sequence[tuple[Case, Sequence[Figure]]], file: Path) -> None:
    """Draw tokens/s against the budget into ``file``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "penstock"  # the same picture from the same figures
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for case, figures in curves:
        speeds = {figure.host_memory: figure.forecast.tokens_per_second for figure in figures}
        line = axes.plot([budget / GiB for budget in speeds], [*speeds.values()], marker=".", label=name_of(case))
        point = enough([*speeds.items()])
        axes.plot([point / GiB], [speeds[point]], marker="o", markersize=9, fillstyle="none", color=line[0].get_color())
    axes.set(
        xlabel=f"host_memory, GiB; a ring: {ENOUGH:.0%} of the best",
        ylabel="tokens/s, simulated",
        title="one PCIe 5 drive, and as much memory as it takes",
        xscale="log",
        yscale="log",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None})


def replace_tables(text: str, parts: Mapping[str, Sequence[Table]]) -> str:
    """Replace the tables of each part in ``text``, between the marks <!-- NAME --> and <!-- /NAME -->, which are on
    lines of their own.

    Raises SystemExit if a mark is not there exactly once.
    """
    for name, tables in parts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"{begin.strip()} and {end.strip()} must be there once each, on lines of their own")
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = before + begin + "".join(_lines(table, titled=len(tables) > 1) for table in tables) + "\n" + end + after
    return text


def _lines(table: Table, *, titled: bool) -> str:
    title, _, lines = table.markdown().partition("\n\n")
    return f"\n**{title}**\n\n{lines}" if titled else f"\n{lines}"


def main() -> None:
    """Simulate all cases, print the tables, and update the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", type=Path, help="the Markdown file whose tables are replaced")
    parser.add_argument("--plot", type=Path, help="tokens/s against the budget, .svg or .png")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = [(case, simulate_case(case)) for case in cases()]
    some = choose_cases()
    curves = [(case, [*curve_of(case)]) for case in (replace(case, machine=MACHINES[3]) for case in some)]
    parts = {
        "models": [models_table()],
        "machines": [machines_table()],
        "figures": figures_tables(found),
        "pays": [pays_table(curves)],
        "weights": [weights_table(some)],
        "elsewhere": [elsewhere_table()],
    }
    results = {
        "figures": [describe(case, figure) for case, figure in found],
        "curves": [describe(case, figure) for case, figures in curves for figure in figures],
    }
    publish([*chain(*parts.values())], results, json_file=options.json, markdown=None)
    slowest = max(found, key=lambda each: each[1].took)
    print(f"the slowest to simulate took {slowest[1].took:.1f} s: {name_of(slowest[0])}, {slowest[0].machine.name}")
    for name in find_implausible(found):
        print(f"ABOVE THE LIMIT: {name}")
    if options.update:
        options.update.write_text(replace_tables(options.update.read_text(), parts))
    if options.plot:
        plot(curves, options.plot)


def describe(case: Case, figure: Figure) -> dict[str, Any]:
    """Flatten a figure for JSON."""
    return {"model": name_of(case), "machine": case.machine.name} | asdict(figure)


if __name__ == "__main__":
    main()
