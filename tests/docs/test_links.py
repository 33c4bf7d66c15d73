"""Links, anchors and file names in the documentation lead somewhere."""

import re
from pathlib import Path

import pytest
import reference

from tests.support.pages import DOCS, PAGES, ROOT, anchors, links, name

GENERATED = {
    DOCS / path: "\n".join(lines)
    for path, lines in zip(reference.PAGES, (reference.configuration(), reference.command_line()), strict=True)
}
"""Pages that mkdocs makes, by where they will be."""

PATH = re.compile(r"(?<![\w./-])(?:kernels|tiering|runtime|penstock|bench|tests|examples|docs)/[\w./-]*\w/?")


def text_of(page: Path) -> str:
    return GENERATED[page] if page in GENERATED else page.read_text("utf-8")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_resolve(page: Path):
    for link in links(page.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target in GENERATED or target.exists(), f"{name(page)} links to {link}"
        if anchor:
            assert anchor in anchors(text_of(target)), f"{name(page)} links to {link}, which has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pages_of_the_site_link_within_it(page: Path):
    """What is outside of docs/ is not on the site."""
    if page.is_relative_to(DOCS):
        for link in links(page.read_text("utf-8")):
            assert (page.parent / link.partition("#")[0]).resolve().is_relative_to(DOCS), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path):
    text = re.sub(r"\]\([^)]*\)|https?:\S+", "", page.read_text("utf-8"))
    for path in PATH.findall(text):
        if re.search(r"\b[A-Z]{2,}\b(?!\.md)", path):
            continue  # kernels/formats/NAME.py stands for any
        assert (ROOT / path).exists(), f"{name(page)} names {path}"


def test_every_picture_is_shown():
    shown = {(page.parent / link).resolve() for page in PAGES for link in links(page.read_text("utf-8"))}
    assert set((DOCS / "images").iterdir()) <= shown
