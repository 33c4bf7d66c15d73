"""Plays a case: the same steps happen to transformers' model and to Penstock's, and the outcomes are compared."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.limited import TookTooLong, limited

from .by_pages import ByPages, noting_pages
from .case import Case
from .checkpoints.write import write
from .old_processor import old_processor
from .open_models import penstock_opening, transformers_opening
from .outcome.attempt import Raised, attempt
from .outcome.closeness import Closeness
from .outcome.compare import difference
from .side import Side
from .steps.step import Step

LONGEST = 120
"""Seconds that a case may take."""
OPENING = "open"


@dataclass
class Report:
    """What a case came to. ``finding``: what is wrong, or nothing; ``where``: in which step. ``refusals``: what
    Penstock does not do, with its reason. ``alike``: steps that had an outcome, and the same one."""

    finding: str = ""
    where: str = ""
    refusals: list[tuple[str, str]] = field(default_factory=list)
    alike: list[str] = field(default_factory=list)
    skipped: str = ""


def play(case: Case, folder: Path) -> Report:
    """Play ``case`` with files in the new ``folder``."""
    report = Report()
    with ExitStack() as stack:
        stack.enter_context(_own_surroundings(case, folder))
        by_pages = stack.enter_context(noting_pages(case.settings.kv_bytes))
        try:
            stack.enter_context(limited(LONGEST))
            _play(case, folder, report, stack, by_pages)
        except TookTooLong:
            report.finding = f"it took more than {LONGEST} s"
    return report


def _play(case: Case, folder: Path, report: Report, stack: ExitStack, by_pages: ByPages) -> None:
    written = attempt(lambda: write(case.model, folder / "checkpoint"))
    if isinstance(written, Raised):
        report.skipped = f"transformers: {written}"
        return
    attention = case.settings.attention
    rounded = case.settings.closeness(case.model) is not Closeness.BITS
    theirs = Side(transformers_opening(case, written, attention), folder, written, ours=False, rounded=rounded)
    opened = attempt(theirs.open)
    if isinstance(opened, Raised) and attention != "eager":
        attention = "eager"
        theirs = Side(transformers_opening(case, written, attention), folder, written, ours=False, rounded=rounded)
        opened = attempt(theirs.open)
    if isinstance(opened, Raised):
        report.skipped = f"transformers: {opened}"
        return
    ours = Side(penstock_opening(case, written, attention, folder / "store"), folder, written, ours=True)
    stack.callback(ours.close)
    opened = attempt(ours.open)
    if isinstance(opened, Raised):
        _note_error(opened, OPENING, report)
        return
    for number, step in enumerate(case.steps):
        report.where = f"{number} {type(step).__name__}"
        _do(step, number, ours, theirs, lambda: _closeness(case, by_pages), report)
        if report.finding:
            return


def _do(step: Step, number: int, ours: Side, theirs: Side, closeness: Callable[[], Closeness], report: Report) -> None:
    """Do ``step`` to both sides. What Penstock refuses does not happen to transformers' model either: where it may have
    happened by half, Penstock must say so (Step.after_refusal)."""
    found = attempt(lambda: _run(step, number, ours))
    if isinstance(found, Raised) and found.is_refusal:
        report.refusals.append((type(step).__name__, str(found)))
        report.finding = step.after_refusal(ours, theirs)
        return
    wanted = attempt(lambda: _run(step, number, theirs))
    if isinstance(found, Raised) and isinstance(wanted, Raised):
        if type(found.error) is not type(wanted.error):
            report.finding = f"raised {found}; transformers: {wanted}"
    elif isinstance(found, Raised):
        report.finding = f"raised {found}"
    elif isinstance(wanted, Raised):
        report.finding = f"only transformers raised {wanted}"
    else:
        report.finding = difference(found, wanted, closeness())
    if not report.finding:
        report.alike.append(type(step).__name__)


def _closeness(case: Case, by_pages: ByPages) -> Closeness:
    """How close the outcome of the last step must be."""
    promised = case.settings.closeness(case.model)
    return Closeness.SUMS if promised is Closeness.BITS and by_pages.seen else promised


def _run(step: Step, number: int, side: Side) -> Any:
    torch.manual_seed(number)
    return step.run(side)


def _note_error(raised: Raised, where: str, report: Report) -> None:
    if raised.is_refusal:
        report.refusals.append((where, str(raised)))
    else:
        report.finding, report.where = f"raised {raised}", where


@contextmanager
def _own_surroundings(case: Case, folder: Path) -> Iterator[None]:
    """One thread; stored prompts are used however slow the drive is; code of models goes into ``folder``."""
    import transformers.dynamic_module_utils as dynamic

    from penstock.runtime.prefixes import prefix

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    old = old_processor() if case.settings.processor == "old" else nullcontext()
    with pytest.MonkeyPatch.context() as patch, old:
        patch.setattr(prefix, "worth_reading", lambda *_, **__: True)
        patch.setattr(dynamic, "HF_MODULES_CACHE", str(folder / "modules"))
        patch.syspath_prepend(str(folder / "modules"))
        for name in _names_of_code():
            patch.delitem(sys.modules, name)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            for name in _names_of_code():  # whoever comes next would look for others beside them
                del sys.modules[name]


def _names_of_code() -> list[str]:
    """The modules that came from models."""
    return [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]
