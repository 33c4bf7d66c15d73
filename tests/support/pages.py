"""The written documentation, as tests read it: pages, their prose, code blocks, links and anchors."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("bench/*.md"), *ROOT.glob("examples/**/*.md"), *DOCS.rglob("*.md")])

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(text: str, language: str) -> Iterator[str]:
    """The code blocks of ``language``; those without one for ""."""
    for _, named, code in _FENCE.findall(text):
        if named == language:
            yield textwrap.dedent(code)


def without_code(text: str) -> str:
    return _FENCE.sub("", text)


def links(text: str) -> Iterator[str]:
    """Targets of links and pictures, but for those on the web."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if not re.match(r"https?:", target):
            yield target


def anchors(text: str) -> set[str]:
    """The names of the headings, as mkdocs and GitHub make them, and those that are given."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE):
        given = re.search(r"\{ ?#([\w-]+) ?\}", heading)
        plain = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        found.add(given[1] if given else re.sub(r"[-\s]+", "-", plain))
    return found
