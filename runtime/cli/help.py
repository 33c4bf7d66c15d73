"""The help of commands: examples, the command's own options, then shared ones in groups. Plain text answers faster."""

from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand

EXAMPLES: Mapping[str, str] = {
    "": """\
penstock generate model.gguf -p "What is the capital of France?"
penstock chat MODEL --host-memory 4GiB
penstock serve MODEL
penstock plan MODEL""",
    "generate": """\
penstock generate MODEL -p "What is the capital of France?"
penstock generate model.gguf --prompt-file question.txt --system "Be brief."
penstock generate MODEL --raw -p "Once upon a time" -n 50 --temperature 0.8
penstock generate MODEL -p "Hello" --host-memory 4GiB --json""",
    "chat": """\
penstock chat MODEL --host-memory 4GiB
penstock chat model.gguf --system "Be brief." --temperature 0.7
penstock chat http://127.0.0.1:8000""",
    "serve": """\
penstock serve MODEL --host-memory 4GiB
PENSTOCK_API_KEY=secret penstock serve model.gguf --host 0.0.0.0""",
    "plan": "penstock plan MODEL --host-memory 4GiB",
    "pack": "penstock pack MODEL --weights-format int8",
    "eval": "penstock eval MODEL --text book.txt --weights-format int4",
}
"""By command; "" is for all of them."""


class Command(TyperCommand):
    """A command whose help shows its examples first, and its options by ``rich_help_panel``, own ones before shared."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, the arguments and the options."""
        write_examples(self.epilog, formatter)
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                own = "Arguments" if param.param_type_name == "argument" else "Options"
                groups.setdefault(getattr(param, "rich_help_panel", None) or own, []).append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples were written before."""


def write_examples(examples: str | None, formatter: Any) -> None:
    """Write the lines ``examples`` as they are."""
    if not examples:
        return
    with formatter.section("Examples"):
        for line in examples.splitlines():
            formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
