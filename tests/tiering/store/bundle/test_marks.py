"""What shows that penstock wrote a folder."""

from pathlib import Path

import pytest

from penstock.tiering.store.bundle.marks import NAME, is_damaged, is_marked, is_packing, strange_in
from tests.support.bundle_blocks import write


def test_a_manifest_that_is_ours_is_a_mark_whatever_its_version_and_end(tmp_path: Path) -> None:
    write(bundle := tmp_path / "bundle")
    assert is_marked(bundle)
    manifest = bundle / NAME
    manifest.write_text(manifest.read_text()[:60])
    assert is_marked(bundle)
    manifest.write_text('{"format": "penstock-bundle", "version": 99999}')
    assert is_marked(bundle)
    for other in ('{"format": "other", "version": 1}', "", "\udcff"):
        manifest.write_text(other, errors="surrogateescape")
        assert not is_marked(bundle)
        assert is_damaged(bundle)
    manifest.unlink()
    assert not is_damaged(bundle)
    (bundle / NAME).symlink_to(tmp_path / "elsewhere")
    assert not is_marked(bundle)


def test_a_manifest_alone_is_no_damaged_bundle(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("{}")
    assert not is_damaged(tmp_path)


@pytest.mark.parametrize("name", ["llama-0123456789abcdef", "gpt_oss-0123456789abcdef-01234567"])
def test_a_packing_has_its_name_and_its_files(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, upto=3)
    aside = tmp_path / f"{name}.partial"
    assert is_packing(aside)
    (aside / f".journal.jsonl.{'0' * 32}.tmp").touch()
    (aside / "model").mkdir()
    assert is_packing(aside)
    (tmp_path / "link-0123456789abcdef.partial").symlink_to(aside)
    assert not is_packing(tmp_path / "link-0123456789abcdef.partial")
    assert not is_packing(aside.rename(tmp_path / "mine.partial"))


@pytest.mark.parametrize("name", ["letter.txt", "data-1.bin", ".journal.jsonl.tmp", "data-00009.bin/", "origin.json/"])
def test_what_no_bundle_has_is_strange(tmp_path: Path, name: str) -> None:
    write(bundle := tmp_path / "bundle")
    assert strange_in(bundle) is None
    (bundle / name).mkdir() if name.endswith("/") else (bundle / name).touch()
    assert strange_in(bundle) == name.rstrip("/")
