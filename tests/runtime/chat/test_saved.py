"""Saved chats are files for their user alone."""

import os
from pathlib import Path

import pytest

from penstock.runtime.chat.conversation import Conversation, Turn
from penstock.runtime.chat.saved import SavedChats
from penstock.tiering.errors import TextError

CHAT = Conversation("brief", [Turn("user", "a"), Turn("assistant", "b")])


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture(autouse=True)
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


async def test_a_chat_is_for_its_user_alone_whatever_was_there(tmp_path):
    saved = SavedChats(tmp_path / "store" / "chats")
    assert saved.names() == []
    path = await saved.save("one", CHAT)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    path.chmod(0o644)
    await saved.save("one", Conversation("longer", CHAT.turns))
    assert mode(path) == 0o600
    assert (await saved.load("one")).system == "longer"
    assert saved.names() == ["one"]
    assert [each.name for each in path.parent.iterdir()] == ["one.json"]


async def test_a_name_with_a_slash_is_that_of_a_file(tmp_path):
    saved = SavedChats(tmp_path / "chats")
    path = await saved.save(str(tmp_path / "mine.json"), CHAT)
    assert (path, mode(path)) == (tmp_path / "mine.json", 0o600)
    assert (await saved.load(str(path))).turns == CHAT.turns
    assert not saved.folder.exists()


@pytest.mark.parametrize("name", ["/proc/none/x.json", "nul\0.json", "x" * 300, "."])
async def test_what_cannot_be_saved_is_said_and_leaves_nothing(tmp_path, name):
    saved = SavedChats(tmp_path / "chats")
    with pytest.raises(TextError, match="choose another name"):
        await saved.save(name if name != "." else str(tmp_path) + "/", CHAT)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_a_text_that_is_none_keeps_what_was_saved(tmp_path):
    saved = SavedChats(tmp_path / "chats")
    path = await saved.save("one", CHAT)
    with pytest.raises(TextError, match="cannot be saved"):
        await saved.save("one", Conversation("\ud800"))
    assert (await saved.load("one")).system == "brief"
    assert [*path.parent.iterdir()] == [path]


async def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(TextError, match=r"pipe\.json cannot be read: it is not a regular file"):
        await SavedChats(tmp_path).load("pipe")


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100_000, b"{}"])
async def test_what_is_no_chat_is_named(tmp_path, content):
    (tmp_path / "bad.json").write_bytes(content)
    saved = SavedChats(tmp_path)
    for name in ("bad", "absent"):
        with pytest.raises(TextError, match=f"{name}.json cannot be read"):
            await saved.load(name)


@pytest.mark.parametrize("folder", ["", "store/llama/"])
async def test_a_chat_is_no_manifest_of_a_bundle(tmp_path, folder):
    saved = SavedChats(tmp_path / "chats")
    name = str(tmp_path / folder / "manifest.json") if folder else "manifest"
    with pytest.raises(TextError, match="bundles have such a file; choose another name"):
        await saved.save(name, CHAT)
    assert not list(tmp_path.rglob("manifest.json"))
