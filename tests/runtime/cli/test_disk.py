"""``penstock ls``, ``rm``, ``du`` and ``prune``: what takes room, and making some."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import penstock
from penstock.runtime.cli.main import main
from penstock.tiering.errors import FlashFull
from tests.support.bundle_blocks import write
from tests.support.chat_models import save_chat_model

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run in this process, with a store of its own; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([*map(str, arguments), "--store", str(tmp_path / "store")])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def packed(run: Run, tmp_path: Path) -> dict[str, Path]:
    """Two models, one of them in two formats."""
    folders = {name: save_chat_model(tmp_path / name, name) for name in ("llama", "qwen3")}
    for name, form in (("llama", "as-is"), ("llama", "int8"), ("qwen3", "as-is")):
        assert run("pack", folders[name], "--weights-format", form)[0] == 0
    return folders


def listed(run: Run) -> list[dict[str, Any]]:
    return json.loads(run("ls", "--json")[1])["models"]


def unused(bundle: dict[str, Any], days: float) -> None:
    then = time.time() - days * 86400
    os.utime(Path(bundle["folder"]) / "origin.json", (then, then))


def test_models_are_listed_with_name_source_and_last_use(run: Run, packed: dict[str, Path], tmp_path: Path):
    found = {each["name"]: each for each in listed(run)}
    assert [*found] == ["qwen3:as-is", "llama:int8", "llama:as-is"]
    for each in found.values():
        assert each["source"] == str(packed[each["name"].split(":")[0]])
        assert each["bytes"] == sum(file.stat().st_size for file in Path(each["folder"]).rglob("*") if file.is_file())
        unused(each, 9)
    assert (Path(found["llama:int8"]["folder"]) / "origin.json").stat().st_mode & 0o777 == 0o600
    with penstock.load(packed["llama"], store=tmp_path / "store", weights_format="int8", threads=1):
        first, *others = listed(run)
    assert first["name"] == "llama:int8"
    assert first["used"] > max(each["used"] for each in others)
    with penstock.load(others[0]["folder"], threads=1):
        assert listed(run)[0]["name"] == others[0]["name"]
    assert "qwen3:as-is" in (shown := run("ls")[1])
    assert str(packed["qwen3"]) in shown


def test_a_wrapped_model_is_told_apart(run: Run, tmp_path: Path):
    model = AutoModelForCausalLM.from_pretrained(save_chat_model(tmp_path / "own"))
    with penstock.wrap(model, store=tmp_path / "store", threads=1):
        [found] = listed(run)
    assert found["kind"] == "wrapped"


def test_models_are_removed_by_name_by_source_or_by_folder(run: Run, packed: dict[str, Path], tmp_path: Path):
    code, _, err = run("rm", "llama")
    assert (code, len(listed(run))) == (1, 3)
    assert "llama is packed more than once; name one: llama:int8, llama:as-is" in err
    assert run("rm", "other")[2].endswith("is called other; penstock ls names what is there\n")
    size = next(each["bytes"] for each in listed(run) if each["name"] == "llama:int8")
    assert json.loads(run("rm", "llama:int8", "--json")[1])["freed"] == size
    assert run("rm", packed["llama"])[0] == 0
    [left] = listed(run)
    assert left["name"] == "qwen3:as-is"
    assert run("rm", left["folder"])[0] == 0
    assert listed(run) == []
    assert packed["qwen3"].is_dir(), "what it was packed from was removed"
    assert run("generate", packed["qwen3"], "-p", "ab", "--tokens", "2")[0] == 0  # it is packed again


def test_what_was_not_used_for_long_goes(run: Run, packed: dict[str, Path], tmp_path: Path):
    for each, days in zip(listed(run), (1, 20, 10), strict=True):
        unused(each, days)
    assert run("prune", "--older-than", "7d", "--dry-run")[1].startswith("llama:int8, llama:as-is would go")
    assert len(listed(run)) == 3
    sizes = {each["name"]: each["bytes"] for each in listed(run)}
    told = json.loads(run("prune", "--to", str(sizes["qwen3:as-is"] + sizes["llama:as-is"]), "--json")[1])
    assert told["removed"] == ["llama:int8"]
    run("prune", "--older-than", "7d")
    assert [each["name"] for each in listed(run)] == ["qwen3:as-is"]
    left = tmp_path / "store" / "llama-0123456789abcdef.partial"
    left.mkdir()
    (left / "data-00000.bin").write_bytes(bytes(1000))
    assert "llama-0123456789abcdef.partial" in run("ls")[2]
    assert json.loads(run("du", "--json")[1])["bytes"]["left by interrupted packings"] == 1000
    assert json.loads(run("prune", "--json")[1])["freed"] == 1000
    assert not left.exists()
    assert len(listed(run)) == 1


def test_the_sum_is_what_is_there(run: Run, packed: dict[str, Path], tmp_path: Path):
    told = json.loads(run("du", "--json")[1])
    store = tmp_path / "store"
    assert sum(told["bytes"].values()) == sum(file.lstat().st_size for file in store.rglob("*") if file.is_file())
    assert told["bytes"]["packed models"] == sum(each["bytes"] for each in listed(run))


def test_a_full_store_names_what_could_go(run: Run, packed: dict[str, Path], tmp_path: Path):
    unused(next(each for each in listed(run) if each["name"] == "llama:int8"), 30)
    with pytest.raises(FlashFull, match=r"not used for longest: llama:int8 \(.*penstock rm removes one"):
        penstock.load(packed["qwen3"], store=tmp_path / "store", weights_format="int8", flash_limit="500KiB")


def test_a_damaged_bundle_can_be_removed(run: Run, packed: dict[str, Path]):
    bundle = Path(listed(run)[0]["folder"])
    (bundle / "manifest.json").write_text("{")
    (bundle / "origin.json").write_text("[")
    assert "qwen3:damaged" in [each["name"] for each in listed(run)]
    assert run("rm", bundle.name)[0] == 0
    assert not bundle.exists()


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"name": "mine"}')


def test_what_penstock_did_not_write_is_never_removed(run: Run, tmp_path: Path):
    store = tmp_path / "store"
    put(store, "site/manifest.json", "mine/manifest.json", "mine/data-00000.bin", "mine/photo.jpg")
    for own in ("chats", "kv", "prefix"):
        put(store, f"{own}/manifest.json", f"{own}/data-00000.bin")
    put(store, "download.partial/film", "llama-0123456789abcdef.partial/thesis", "torn/manifest.json")
    put(store, "torn/data-00000.bin")  # as a bundle whose manifest is damaged
    (store / "gpt-0123456789abcdef.partial").symlink_to(tmp_path)
    write(store / "own")
    put(store, "own/letter.txt")
    before = sorted(store.rglob("*"))
    assert {each["name"] for each in listed(run)} == {"own:as-is", "torn:damaged"}
    assert "interrupted" not in run("ls")[2]
    assert json.loads(run("du", "--json")[1])["bytes"]["left by interrupted packings"] == 0
    for wanted in (["--to", "0B"], ["--older-than", "0m"], []):
        told = json.loads(run("prune", *wanted, "--json")[1])
        assert (told["removed"], told["freed"]) == ([], 0)
    for name in ("site", "mine", "chats"):
        assert run("rm", name)[0] == 1
    assert "letter.txt is not of the bundle; move it elsewhere" in run("rm", "own")[2]
    assert [path for path in sorted(store.rglob("*")) if path.suffix != ".lock"] == before
    assert run("rm", "torn")[0] == 0
    assert not (store / "torn").exists()


def test_of_a_bundle_on_a_link_only_the_link_is_removed(run: Run, tmp_path: Path):
    store = tmp_path / "store"
    store.mkdir()
    write(tmp_path / "far")
    before = sorted((tmp_path / "far").iterdir())
    (store / "near").symlink_to(tmp_path / "far")
    assert json.loads(run("prune", "--to", "0B", "--json")[1])["removed"] == []
    code, out, err = run("rm", "near", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["freed"] == 0
    assert listed(run) == []
    assert sorted((tmp_path / "far").iterdir()) == before
