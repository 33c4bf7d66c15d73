"""The documentation is short where it must be, and in plain sentences."""

import re

from tests.support.pages import DOCS, PAGES, ROOT, without_code

SEMICOLONS = 0.2
"""Most of them per hundred words."""


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_semicolons_are_rare():
    text = "\n".join(without_code(page.read_text("utf-8")) for page in PAGES)
    assert text.count(";") < SEMICOLONS / 100 * len(text.split())


def test_a_term_is_explained_once():
    rows = re.findall(r"^\| ([^|]+) \|", (DOCS / "glossary.md").read_text("utf-8"), re.MULTILINE)
    terms = [term for row in rows if row not in ("term", "---") for term in row.split(", ")]
    assert len(terms) == len(set(terms)) > 80


def test_the_glossary_has_a_line_for_each_term():
    rows = [line for line in (DOCS / "glossary.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    assert all(line.count(" | ") == 1 for line in rows)
