"""The file of answers when writing ends."""

import json
import resource
from pathlib import Path

import pytest

from penstock.runtime.batch.answers_file import opened
from penstock.tiering.errors import BatchError


async def _fill(path: Path, hard: int) -> None:
    """Write an answer, and a part of another one, behind which there is no room."""
    async with opened(path, {"a", "b"}) as answers:
        await answers.add({"custom_id": "a"})
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(json.dumps({"custom_id": "a"})) + 5, hard))
        await answers.add({"custom_id": "b"})


async def test_a_full_disk_is_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(BatchError, match=r"answers cannot be written.*the same command goes on from here"):
            await _fill(path, limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    async with opened(path, {"a", "b"}) as answers:
        assert answers.done == {"a"}
        await answers.add({"custom_id": "b"})
    assert [json.loads(line)["custom_id"] for line in path.read_text().splitlines()] == ["a", "b"]


async def test_what_fails_meanwhile_is_not_blamed_on_the_answers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="of a model"):
        async with opened(tmp_path / "out.jsonl", {"a"}):
            raise FileNotFoundError("a file of a model")


async def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match=r"none/out\.jsonl cannot be written.*name another file with -o"):
        async with opened(tmp_path / "none" / "out.jsonl", {"a"}):
            pass
