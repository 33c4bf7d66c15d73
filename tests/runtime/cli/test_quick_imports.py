"""Commands import what they need; what is left out comes when it is used, and is what it would have been."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock.runtime.packing.pack import pack
from tests.support.gguf_files import mixed, write

COMPILER = ("torch._dynamo.utils", "torch._inductor", "sympy.core", "torch.distributed.tensor", "accelerate")
LIBRARIES = ("torch", "transformers")


def child(code: str, *arguments: object) -> dict[str, Any]:
    """What ``tests/support/own_process_child.py`` says."""
    command = [sys.executable, "-m", "tests.support.own_process_child", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"out": done.stdout}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> tuple[Path, Path, Path]:
    """A store, a GGUF file with a tokenizer, and a bundle; the checkpoint is packed as well."""
    folder = tmp_path_factory.mktemp("quick")
    file = write(folder / "model.gguf", "llama", mixed, vocabulary="gpt2")
    pack(checkpoint, store=folder / "store").close()
    with pack(file, store=folder / "store") as bundle:
        return folder / "store", file, bundle.folder


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize("kind", ["bundle", "file", "checkpoint"])
def test_what_is_packed_is_looked_at_without_torch(
    command: str, kind: str, packed: tuple[Path, Path, Path], checkpoint: Path
) -> None:
    store, file, bundle = packed
    model = {"bundle": bundle, "file": file, "checkpoint": checkpoint}[kind]
    found = child("", command, model, "--store", store)
    assert found["code"] == 0
    assert not {*LIBRARIES, "asyncio"} & {*found["imported"]}


@pytest.mark.parametrize("arguments", [["--help"], ["config"], ["verify", "--help"]], ids=" ".join)
def test_what_needs_no_model_needs_no_loop_either(arguments: list[str]) -> None:
    found = child("", *arguments)
    assert found["code"] == 0
    assert not {*LIBRARIES, "asyncio", "aiofiles", "numpy"} & {*found["imported"]}


def test_a_command_imports_no_other() -> None:
    imported = child("", "config")["imported"]
    commands = {name.rpartition(".")[2] for name in imported if name.startswith("penstock.runtime.cli.")}
    assert not {"generate", "pack", "doctor", "cache", "bench"} & commands


@pytest.mark.parametrize("kind", ["file", "checkpoint"])
def test_generating_imports_no_compiler(kind: str, packed: tuple[Path, Path, Path], checkpoint: Path, run: Any) -> None:
    store, file, _ = packed
    model = {"file": file, "checkpoint": checkpoint}[kind]
    arguments = ["generate", model, "-p", "abc def" if kind == "file" else "w5 w6", "-n", "5", "--store", store]
    found = child("", *arguments)
    assert not {*COMPILER} & {*found["imported"]}
    assert (found["collecting"], found["frozen"] > 100_000) == (True, True)
    code, out, _ = run(*arguments)
    assert (code, found["code"]) == (0, 0)
    assert found["out"].startswith(out)


def test_transformers_lists_the_same_models() -> None:
    code = """
from penstock.runtime.cli.console import quiet_libraries
import importlib
quiet_libraries()
ours = sys.modules.pop("transformers.models")
theirs = importlib.import_module("transformers.models")
names = ("_class_to_module", "_modules", "_object_missing_backend")
said["another"] = theirs is not ours
said["same"] = [getattr(ours, name) == getattr(theirs, name) for name in names]
structures = [{key: set(value) for key, value in each._import_structure.items()} for each in (ours, theirs)]
said["same"] += [structures[0] == structures[1], set(ours.__all__) == set(theirs.__all__)]
said["same"] += [vars(ours).keys() == vars(theirs).keys()]
"""
    found = child(code)
    assert (found["another"], found["same"]) == (True, [True] * 6)


def test_the_compiler_works_when_it_is_used() -> None:
    code = """
from penstock.runtime.cli.console import quiet_libraries
quiet_libraries()
import torch, transformers.masking_utils
said["before"] = type(sys.modules["torch._dynamo"]).__name__

@torch.compiler.disable
def apart(x):
    said.setdefault("compiling", torch.compiler.is_compiling())
    return x + 1

@torch._dynamo.assume_constant_result
def constant():
    return 7

def whole(x):
    return apart(x * 2) + constant()

graphs = []
compiled = torch.compile(whole, backend=lambda graph, _: graphs.append(graph) or graph.forward)
said["result"] = compiled(torch.ones(2)).tolist()
said["graphs"] = len(graphs)
said["after"] = type(sys.modules["torch._dynamo"]).__name__
said["marked"] = constant._dynamo_marked_constant
from torch.fx.experimental.symbolic_shapes import ShapeEnv, guard_or_false, sym_eq
said["shapes"] = [guard_or_false(True), sym_eq((1, 2), (1, 2)), sym_eq((1, 2), (1, 3))]
"""
    found = child(code)
    assert (found["before"], found["after"], found["marked"]) == ("Deferred", "module", True)
    assert (found["result"], found["graphs"], found["compiling"]) == ([10.0, 10.0], 2, False)
    assert found["shapes"] == [True, True, False]


def test_stand_ins_say_what_torch_says() -> None:
    code = """
from penstock.runtime.cli import quick_imports
import functools, importlib
from torch.fx.experimental import symbolic_shapes
asked = [(True,), (False,), (True, True), (True, False), (False, False), (1,), (2, 2), (2, 3)]
asked += [((1, 2), (1, 2)), ((1, 2), (1, 3)), ((), ()), ((1,), (1, 1)), ((1,), 1), (1, True)]
said["wrong"] = []
said["answered"] = set()
for name, answer in quick_imports._SHAPES.items():
    for args in asked:
        try:
            ours = answer(*args)
        except TypeError:
            continue
        if ours is not None:
            said["answered"].add(name)
            theirs = getattr(symbolic_shapes, name)(*args)
            if type(theirs) is not bool or theirs != ours:
                said["wrong"].append([name, repr(args)])
said["answered"] = sorted(said["answered"])
"""
    found = child(code)
    assert found["wrong"] == []
    assert {"expect_true", "guard_or_false", "sym_and", "sym_or", "sym_eq", "is_nested_int"} <= {*found["answered"]}


def test_a_library_leaves_imports_as_they_are() -> None:
    """Only a process of our own is changed."""
    code = (
        "import sys, gc; from penstock.runtime.cli.main import main; main(['plan', '/nowhere']);"
        "from transformers.utils import is_torch_distributed_available as there;"
        "print(type(sys.modules.get('torch._dynamo')).__name__, there(), gc.get_freeze_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] in ("module True 0", "NoneType True 0")
