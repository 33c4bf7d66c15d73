"""Lines of a pipe."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from penstock.runtime.chat.reading import PipeReader


async def test_ctrl_c_ends_the_wait_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    before = signal.getsignal(signal.SIGINT)
    with os.fdopen(reading) as stdin, os.fdopen(writing, "w") as typed:
        monkeypatch.setattr(sys, "stdin", stdin)
        reader = PipeReader()
        for part in ("one\nha", ""):
            typed.write(part)
            typed.flush()
            if part:
                assert await reader.read() == "one"
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                await reader.read()
        typed.write("lf\n\u00fc")
        typed.close()
        assert [await reader.read(), await reader.read()] == ["half", "\u00fc"]
        with pytest.raises(EOFError):
            await reader.read()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("content", ["", "hi\n"])
async def test_a_file_is_read_to_its_end(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines"
    path.write_text(content)
    for each, lines in ((path, content.splitlines()), (Path(os.devnull), [])):
        with each.open() as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            reader = PipeReader()
            assert [await reader.read() for _ in lines] == lines
            with pytest.raises(EOFError):
                await reader.read()
