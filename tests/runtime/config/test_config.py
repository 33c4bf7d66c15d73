"""The configuration: precedence, strictness, what errors say, and that a printed file reads back."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.runtime.config.config import Config, auto_host_memory
from penstock.runtime.config.settings import OVERRIDES, Experts
from penstock.runtime.config.values import WEIGHT_FORMATS
from penstock.tiering.errors import ConfigError
from penstock.tiering.policy.eviction import EVICTION
from penstock.tiering.policy.placement.placement import SizedBlock, place, with_working_memory
from penstock.tiering.units import BlockId, GiB, MiB


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No configuration of the developer's own gets in."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        file = tmp_path / "some.toml"
        file.write_text(text)
        return file

    return write


def refusal(*arguments, **overrides) -> str:
    with pytest.raises(ConfigError) as caught:
        Config.load(*arguments, **overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- where values come from ---


def test_defaults(tmp_path):
    config = Config.load()
    assert config == Config()
    assert config.store.path == tmp_path / "home/.cache/penstock"
    assert config.memory.host == "auto"
    assert config.flash_limit is None
    assert config.direct is None


def test_file_then_overrides(write):
    file = write('[memory]\nhost = "2GiB"\nflash = 1000\n[experts]\neviction = "lru"\n[io]\nbackend = "buffered"\n')
    config = Config.load(file, host_memory="3GiB", io_depth=4, threads=None)
    assert (config.memory.host, config.flash_limit, config.experts.eviction) == (3 * GiB, 1000, "lru")
    assert (config.direct, config.io.depth, config.compute.threads) == (False, 4, "auto")


def test_usual_places(tmp_path):
    user = tmp_path / "home/.config/penstock/penstock.toml"
    user.parent.mkdir(parents=True)
    user.write_text("[compute]\nthreads = 3\n")
    assert Config.load().compute.threads == 3
    here = Path("penstock.toml")
    here.write_text("[compute]\nthreads = 5\n")
    assert Config.load().compute.threads == 5


@pytest.mark.parametrize("name", OVERRIDES)
def test_every_override_reaches_its_key(name, tmp_path):
    section, key = OVERRIDES[name]
    value = {
        "host_memory": 7 * MiB,
        "host_memory_floor": 6 * MiB,
        "device_memory": 5 * MiB,
        "flash_limit": 9,
        "store": tmp_path / "s",
        "store_stripes": (tmp_path / "a", tmp_path / "b"),
        "weights_format": "int8",
        "weights_experts": "int4-64",
        "weights_attention": "as-is",
        "weights_dense": "lossless",
        "weights_embeddings": "int8",
        "weights_output": "int4",
        "weights_quality": "adaptive",
        "experts_eviction": "lfu",
        "experts_prefetch": "off",
        "experts_misses": "auto",
        "experts_products": "grouped",
        "kv_host_memory": 5 * MiB,
        "kv_device_memory": 3 * MiB,
        "kv_flash_limit": 8,
        "kv_format": "int8",
        "kv_attention": "certified",
        "kv_epsilon": 0.25,
        "kv_summary": "boxes",
        "kv_prefix": 9 * MiB,
        "kv_namespace": "me",
        "kv_budget": "12.5%",
        "kv_layers": "by-need",
        "io_backend": "threads",
        "io_depth": 2,
        "device": "emulated:8GB",
        "threads": 1,
    }[name]
    config = Config.load(**{name: value})
    assert getattr(getattr(config, section), key) == value
    assert sum(len(type(part).model_fields) for _, part in config) == len(OVERRIDES)


def test_store_path_of_a_file_is_relative_to_the_file(write, tmp_path):
    assert Config.load(write('[store]\npath = "bundles"\n')).store.path == tmp_path / "bundles"
    assert Config.load(write('[store]\npath = "~/b"\n')).store.path == tmp_path / "home/b"
    assert Config.load(store="bundles").store.path == tmp_path / "work/bundles"


def test_stripes_are_a_list_or_separated_by_commas(write, tmp_path):
    assert Config.load().store.stripes == ()
    file = write('[store]\nstripes = ["b", "~/c", "/d"]\n')
    assert Config.load(file).store.stripes == (tmp_path / "b", tmp_path / "home/c", Path("/d"))
    assert Config.load(file, store_stripes="e, /f").store.stripes == (tmp_path / "work/e", Path("/f"))
    assert Config.load(file, store_stripes=[Path("/g,h")]).store.stripes == (Path("/g,h"),)
    assert Config.load(file, store_stripes="").store.stripes == ()


def test_override_of_a_config():
    config = Config.load(host_memory="1GiB").override(threads=2)
    assert (config.memory.host, config.compute.threads) == (GiB, 2)
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.memory.host = 3


# --- strictness ---


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[memory]\nhots = 1", ["[memory] hots = 1", 'did you mean "host"']),
        ("[memory]\nhost_memory = 1", ['did you mean "host"']),
        ("[memry]\nhost = 1", ["[memry]", 'did you mean "memory"']),
        ("[xyzzy]\nhost = 1", ["there are: memory, store, weights, experts, kv, io, compute"]),
        ('host = "1GiB"', ["host = ... under [memory]"]),
        ("host_memory = 1", ["host = ... under [memory]"]),
        ("memory = 3", ["[memory]", "keys: host, floor, device, flash"]),
        ("[[memory]]\nhost = 1", ["[memory]", "keys: host, floor, device, flash"]),
        ('[memory]\nhost = "2XB"', ['host = "2XB"', "1.5GiB", '"auto"']),
        ("[memory]\nhost = -1", ["host = -1", "negative"]),
        ("[memory]\nhost = true", ["host = true"]),
        ('[memory]\nflash = "9999999TB"', ["no machine"]),
        (f'[memory]\nflash = "{"9" * 400}"', ["no machine"]),
        ("[store]\npath = 3", ["path = 3", "path of a folder"]),
        ('[store]\npath = ""', ["path of a folder"]),
        ('[store]\npath = "a\\u0000b"', ["zero bytes"]),
        ("[store]\nstripes = 3", ["stripes = 3", "list of folders"]),
        ('[store]\nstripes = ["a", ""]', ["path of a folder"]),
        ('[store]\nstripes = ["a", "b/../a", "./a"]', ["named twice"]),
        ('[weights]\nformat = "int3"', ['format = "int3"', "as-is, lossless", 'did you mean "int']),
        ("[weights]\nexperts = 4", ["experts = 4", "as-is, lossless"]),
        ('[experts]\neviction = "LUR"', ['one of "auto", "next-use", "lfu"', 'did you mean "lru"']),
        ('[experts]\nmisses = "cpu"', ['one of "copy", "auto"']),
        ('[kv]\nattention = "some"', ['one of "exact", "certified"']),
        ("[kv]\nepsilon = 1", ["epsilon = 1", "between 0 and 1"]),
        ('[kv]\nepsilon = "0.1"', ["between 0 and 1"]),
        ('[io]\nbackend = "mmap"', ['one of "auto", "io_uring", "threads", "buffered"']),
        ('[io]\ndepth = "4"', ['depth = "4"', "number from 1"]),
        ("[io]\ndepth = 0", ["number from 1"]),
        ("[io]\ndepth = true", ["number from 1"]),
        ("[compute]\nthreads = 1.5", ["threads = 1.5", "number from 1"]),
        ('[compute]\ndevice = "gpu"', ['"cuda:0"']),
        ('[compute]\ndevice = "emulated:fast"', ["emulated:8GB"]),
        ("[memory\n", ["not a TOML file", "line 1"]),
        ("[memory]\nhost = 1\nhost = 2", ["not a TOML file"]),
    ],
)
def test_mistakes_in_a_file_are_named(write, text, parts):
    file = write(text)
    message = refusal(file)
    assert message.startswith(str(file))
    for part in parts:
        assert part in message


def test_mistakes_in_overrides_are_named():
    assert 'host_memory = "2XB"' in refusal(host_memory="2XB")
    assert 'did you mean "host_memory"' in refusal(host_memry=1)
    assert len(refusal(host_memory="9" * 4000)) < 200
    with pytest.raises(ConfigError, match=r"\[io\] depth = 0"):
        Config(io={"depth": 0})


def test_unreadable_files(tmp_path):
    assert "No such file" in refusal(tmp_path / "absent.toml")
    assert "directory" in refusal(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert "not a TOML file" in refusal(tmp_path / "binary")
    assert "null byte" in refusal("a\0b")
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    assert "not a regular file" in refusal(tmp_path / "device")


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 5000,
        "x = " + "{a = " * 5000,
        "[io]\ndepth = 0x" + "f" * 20_000,
        "[io]\ndepth = [0x" + "f" * 20_000 + "]",
        "[io]\ndepth = " + "9" * 5000,
        "a" + ".a" * 10_000 + " = 1",
        "[" + "a." * 10_000 + "a]",
        "# " + "x" * 40_000,
        '[store]\npath = "a\\u0000b"',
        "[io]\ndepth = nan",
        "[io]\ndepth = true",
        "io = 7",
        "[[io]]\n",
    ],
)
def test_strange_files_are_one_line(tmp_path, text):
    (tmp_path / "penstock.toml").write_text(text)
    message = refusal(tmp_path / "penstock.toml")
    assert "\n" not in message
    assert len(message) < 400


# --- the printed file ---

sizes = st.one_of(st.just("auto"), st.integers(0, 1 << 60), st.integers(0, 1 << 20).map(lambda n: n * MiB))
counts = st.one_of(st.just("auto"), st.integers(1, 1024))
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "host_memory": sizes,
            "flash_limit": sizes,
            "store": texts.map(lambda text: "/" + text),
            "store_stripes": st.lists(texts.map(lambda text: "/" + text), max_size=3, unique_by=Path),
            "weights_format": st.sampled_from(WEIGHT_FORMATS),
            "weights_experts": st.sampled_from(("auto", *WEIGHT_FORMATS)),
            "weights_quality": st.sampled_from(["full", "adaptive", "base"]),
            "experts_eviction": st.sampled_from(["auto", "lru", "lfu"]),
            "experts_prefetch": st.sampled_from(["auto", "off"]),
            "experts_misses": st.sampled_from(["copy", "auto"]),
            "experts_products": st.sampled_from(["each", "grouped"]),
            "kv_host_memory": sizes,
            "kv_device_memory": sizes,
            "kv_flash_limit": sizes,
            "kv_epsilon": st.floats(1e-300, 0.999),
            "kv_prefix": st.one_of(st.just("off"), st.integers(0, 1 << 60)),
            "kv_namespace": st.text(st.characters(codec="utf-8", exclude_characters="\0")),
            "kv_budget": st.one_of(st.just("auto"), st.integers(1, 1 << 40), st.just("25%")),
            "io_backend": st.sampled_from(["auto", "io_uring", "threads", "buffered"]),
            "io_depth": counts,
            "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:1", "emulated", "emulated:2GiB"]),
            "device_memory": sizes,
            "threads": counts,
        },
    )
)
def test_printed_file_reads_back(tmp_path_factory, overrides):
    config = Config.load(**overrides)
    file = tmp_path_factory.getbasetemp() / "printed.toml"
    file.write_text(config.to_toml(), "utf-8")
    assert Config.load(file) == config


def test_printed_file_explains_every_key_and_prints_sizes_as_people_write_them():
    lines = Config.load(host_memory="1.5GiB", flash_limit=1001).to_toml().splitlines()
    assert 'host = "1536MiB"' in lines
    assert "flash = 1001" in lines
    for _, key in OVERRIDES.values():
        at = next(number for number, line in enumerate(lines) if line.startswith(f"{key} = "))
        assert lines[at - 1].startswith("# ")


# --- automatic sizes ---


def test_auto_host_memory_leaves_headroom():
    assert auto_host_memory(16 * GiB, 100 * GiB) == 12 * GiB
    assert auto_host_memory(6 * GiB, 100 * GiB) == 4 * GiB
    assert auto_host_memory(2 * GiB, 100 * GiB) == GiB
    assert auto_host_memory(16 * GiB, 3 * GiB) == 3 * GiB


@given(st.integers(0, 1 << 50), st.integers(0, 1 << 50))
def test_auto_host_memory_is_within_bounds(available, model):
    budget = auto_host_memory(available, model)
    assert 0 <= budget <= min(model, available)
    if available >= 4 * GiB:
        assert available - budget >= max(2 * GiB, available // 4)


def test_budget_as_written_or_measured(monkeypatch):
    assert Config.load(host_memory="1GiB").host_budget(5) == GiB
    monkeypatch.setattr("penstock.kernels.machine.machine.read_available_memory", lambda: 16 * GiB)
    assert Config.load().host_budget() == 12 * GiB
    assert Config.load().host_budget(2 * GiB) == 2 * GiB + 96 * MiB


@pytest.mark.parametrize("weights", [1 << 12, 11 << 12, 300 * MiB, 1055 * MiB, 1056 * MiB, 5 * GiB])
def test_automatic_budget_keeps_a_whole_model_in_memory(weights):
    blocks = [SizedBlock(BlockId("dense", "layer"), weights, False)]
    assert place(blocks, with_working_memory(weights)).streamed == ()


def test_reading_a_configuration_loads_no_torch():
    code = "import sys; from penstock.runtime.config.config import Config; Config.load(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout == "False\n"


def test_a_floor_above_the_ceiling_is_refused(write):
    file = write('[memory]\nhost = "1GiB"\nfloor = "2GiB"')
    message = refusal(file)
    assert "[memory] floor" in message
    assert "above host, which is 1.00 GiB" in message
    with pytest.raises(ConfigError, match="host_memory_floor = 2"):
        Config.load(host_memory=1, host_memory_floor=2)
    assert Config.load(host_memory=2, host_memory_floor=2).memory.floor == 2
    assert Config.load(host_memory_floor="1TiB").memory.host == "auto", "what fits is found out later"


def test_settings_name_every_eviction_policy_that_there_is() -> None:
    """A policy in the registry can be chosen, and the file offers no other."""
    offered = set(get_args(Experts.model_fields["eviction"].annotation))
    assert offered == {*EVICTION}
