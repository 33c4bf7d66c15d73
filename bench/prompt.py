"""A long prompt beside the peers, under a real cap, and whether every expert was read at most once for it.

    python bench/prompt.py MODEL --cap 2GiB --host-memory 1400MiB [--gguf MODEL.gguf] [--prompt 512] [--rounds 5]

Each run is a process of its own, the page cache dropped before; penstock and the peers take turns. Nothing but what is
pinned is in memory when the prompt begins, so every expert that it needs (seen at the routers) must be read once at
least: "read / needed" is what was read over the bytes of these experts and of the dense weights that are streamed, and
1.00 means each once. Where dense weights are streamed, the next token's first ones, read ahead, come on top.
"""

from typing import Any

from figures import Spread
from report import Table, publish, write_results
from rounds import make_parser, open_runner, print_run, size, take_turns

from penstock.tiering.units import format_size


def bytes_needed(run: dict[str, Any]) -> float:
    """The bytes that the prompt of ``run`` had to read at least: its experts and the streamed layers, once each."""
    expert = run["expert_total_bytes"] / run["expert_count"] if run["expert_count"] else 0
    return float(run["prompt_experts"] * expert + run["streamed_bytes"])


def table(title: str, rounds: list[dict[str, dict[str, Any]]]) -> Table:
    """Make the table of the report."""
    rows = []
    for mode in rounds[0]:
        runs = [each[mode] for each in rounds]
        ratios = [each[mode]["prompt_s"] / each["penstock"]["prompt_s"] for each in rounds]
        read = over = experts = ""
        if mode == "penstock":
            read = Spread.of([(run["prompt_bytes_read"] - run["prompt_row_bytes"]) / 1e9 for run in runs]).text(3)
            over = Spread.of(
                [(run["prompt_bytes_read"] - run["prompt_row_bytes"]) / bytes_needed(run) for run in runs]
            ).text(3)
            experts = f"{max(run['prompt_experts'] for run in runs)} of {runs[0]['expert_count']}"
        rows.append(
            (
                mode,
                Spread.of([run["prompt_s"] for run in runs]).text(2),
                "" if mode == "penstock" else Spread.of(ratios).text(2, "x"),
                read,
                experts,
                over,
                format_size(max(run["peak_resident_bytes"] for run in runs)),
            )
        )
    columns = ("", "prompt s", "penstock is", "GB read", "experts needed", "read / needed", "peak resident")
    return Table(title, columns, rows)


def main() -> None:
    """Run all engines in turn, and report."""
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--cap", type=size, required=True, help="the cap, page cache and the process itself included")
    parser.add_argument("--host-memory", default="auto", help="penstock's budget under it")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    options = parser.parse_args()
    modes = ["penstock", "accelerate"] + ["llama.cpp"] * bool(options.gguf)
    rounds: list[dict[str, dict[str, Any]]] = []
    with open_runner(options) as run:

        def once(mode: str, prompt: int) -> dict[str, Any]:
            return run.run(mode, 0, cap=options.cap, host_memory=options.host_memory, prompt=prompt)

        once("penstock", 1)  # packs
        for number in range(options.rounds):
            done = {}
            for mode in take_turns(modes, number):
                done[mode] = once(mode, options.prompt)
                print_run(done[mode])
            rounds.append({mode: done[mode] for mode in modes})
            if options.json:
                write_results({"rounds": rounds}, options.json)
    title = (
        f"{options.model.name}, a prompt of {options.prompt} tokens, cap {format_size(options.cap)}, host_memory "
        f"{options.host_memory}, {options.rounds} rounds"
    )
    publish([table(title, rounds)], {"rounds": rounds}, json_file=options.json, markdown=options.markdown)


if __name__ == "__main__":
    main()
