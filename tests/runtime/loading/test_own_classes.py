"""Models that are not transformers' own causal ones: with code beside the weights, and wrapped ones of any class."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification, LlamaModel

import penstock
from penstock.runtime.checkpoints.modules import positional_names
from penstock.runtime.modules import model_forward
from penstock.tiering.errors import BundleError, CheckpointError
from tests.support.prompts import IDS
from tests.support.tiny_models import save_tiny, tiny_config

X = torch.tensor([IDS])
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
from .factor_own import FACTOR
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
    def forward(self, *a, **k):
        out = super().forward(*a, **k)
        out.logits = out.logits * FACTOR
        return out
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A checkpoint with code of its own, which leaves a mark when it runs."""
    folder = save_tiny("llama", tmp_path / "own")
    ran = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    (folder / "configuration_own.py").write_text(
        f"{ran}from transformers import LlamaConfig\nclass OwnConfig(LlamaConfig):\n    model_type = 'own_type'\n"
    )
    (folder / "factor_own.py").write_text("FACTOR = 1.25\n")
    (folder / "modeling_own.py").write_text(MODELING)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own_type", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def load(source: Path | str, tmp_path: Path, **options: Any) -> Any:
    return penstock.load(source, store=tmp_path / "store", host_memory="8MiB", **options)


def test_code_is_not_run_unless_it_is_trusted(own: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        load(own, tmp_path)
    assert not (tmp_path / "ran").exists()
    load(own, tmp_path, trust_remote_code=True).penstock.close()
    assert (tmp_path / "ran").exists()


def test_a_model_with_code_of_its_own(own: Path, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(own, trust_remote_code=True)
    wanted, text = plain(X).logits, plain.generate(X, max_new_tokens=5, do_sample=False)
    with load(own, tmp_path, trust_remote_code=True) as model:
        assert torch.equal(model(X).logits, wanted)
        assert torch.equal(model(input_ids=X).logits, wanted)
        assert torch.equal(model.generate(X, max_new_tokens=5, do_sample=False), text)
        bundle = Path(model.penstock.bundle)
    with load(bundle, tmp_path, trust_remote_code=True) as model:
        assert torch.equal(model(X).logits, wanted)
    (tmp_path / "ran").unlink()
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        load(bundle, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_code_that_changes_is_taken(own: Path, tmp_path: Path) -> None:
    """transformers itself goes on with the code that it met first, in the same process."""
    AutoModelForCausalLM.from_pretrained(own, trust_remote_code=True)
    with load(own, tmp_path, trust_remote_code=True) as model:
        before = model(X).logits
    (own / "factor_own.py").write_text("FACTOR = 2.5\n")
    with load(own, tmp_path, trust_remote_code=True) as model:
        assert torch.equal(model(X).logits, 2 * before)
        bundle = Path(model.penstock.bundle)
    assert (bundle / "model" / "factor_own.py").read_text() == "FACTOR = 2.5\n"


def test_a_wrapped_model_with_code_of_its_own(own: Path, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(own, trust_remote_code=True)
    wanted = plain(X).logits
    with penstock.wrap(plain, store=tmp_path / "store", host_memory="8MiB") as model:
        assert torch.equal(model(X).logits, wanted)
        bundle = Path(model.penstock.bundle)
    with load(bundle, tmp_path, trust_remote_code=True) as model:
        assert torch.equal(model(X).logits, wanted)


@pytest.mark.usefixtures("elsewhere", "quick")
@pytest.mark.parametrize("command", [("bench", "-n", "1"), ("pack",), ("plan",)], ids=lambda command: command[0])
def test_commands_take_code(run: Any, own: Path, command: tuple[str, ...]) -> None:
    code, _, err = run(command[0], own, *command[1:])
    assert code == 1
    assert "trust_remote_code" in err
    code, _, err = run(command[0], own, *command[1:], "--trust-remote-code")
    assert (code, err) == (0, "")


# --- wrapped ---------------------------------------------------------------------------------------------------------


def test_a_wrapped_classifier_is_loaded_as_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = LlamaForSequenceClassification(tiny_config("llama", num_labels=3)).eval()
    wanted = plain(X).logits
    with penstock.wrap(plain, store=tmp_path / "store", host_memory="8MiB") as model:
        assert torch.equal(model(X).logits, wanted)
        bundle = Path(model.penstock.bundle)
    with load(bundle, tmp_path) as model:
        assert type(model).__name__ == "LlamaForSequenceClassification"
        assert torch.equal(model(X).logits, wanted)


def test_a_wrapped_base_model_is_loaded_as_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = LlamaModel(tiny_config("llama")).eval()
    wanted = plain(X).last_hidden_state
    with penstock.wrap(plain, store=tmp_path / "store", host_memory="8MiB") as model:
        bundle = Path(model.penstock.bundle)
    with load(bundle, tmp_path) as model:
        assert torch.equal(model(X).last_hidden_state, wanted)


class Louder(LlamaForSequenceClassification):
    """Of this module: nobody else can build it."""


def test_a_wrapped_model_of_the_users_own_class_says_so(tmp_path: Path) -> None:
    plain = Louder(tiny_config("llama", num_labels=3)).eval()
    with penstock.wrap(plain, store=tmp_path / "store", host_memory="8MiB") as model:
        bundle = Path(model.penstock.bundle)
    with pytest.raises(CheckpointError, match=r"holds the weights of a Louder of .*test_own_classes.*wrap it again"):
        load(bundle, tmp_path)


def test_a_wrapped_model_with_other_modules_says_so(tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_config(tiny_config("llama")).eval()
    plain.model.norm = torch.nn.LayerNorm(64)
    wanted = plain(X).logits
    with penstock.wrap(plain, store=tmp_path / "store", host_memory="8MiB") as model:
        assert torch.equal(model(X).logits, wanted)
        bundle = Path(model.penstock.bundle)
    with pytest.raises(BundleError, match=r"wrapped LlamaForCausalLM that had other modules.*wrap it again"):
        load(bundle, tmp_path)


def test_two_models_with_own_code_of_one_type(own: Path, tmp_path: Path) -> None:
    """transformers itself would give the second the code of the first."""
    with load(own, tmp_path, trust_remote_code=True) as model:
        before = model(X).logits
    other = Path(shutil.copytree(own, tmp_path / "other"))
    (other / "modeling_own.py").write_text(MODELING.replace("* FACTOR", "* FACTOR * 2"))
    for folder, factor in ((other, 2), (own, 1)):
        with load(folder, tmp_path, trust_remote_code=True) as model:
            assert torch.equal(model(X).logits, factor * before)


# --- arguments by position -------------------------------------------------------------------------------------------


def test_arguments_by_position_have_the_names_of_what_is_overridden() -> None:
    class Base:
        def forward(self, first: int, second: int = 0, *, third: int = 0) -> None: ...

    class Any_(Base):
        def forward(self, *args: Any, **kwargs: Any) -> None: ...

    assert positional_names(Base().forward) == ("first", "second")
    assert positional_names(Any_().forward) == ("first", "second")
    assert positional_names(lambda *args: None) == ()


@pytest.mark.parametrize("kv", [None, "1MiB"])
def test_a_forward_that_takes_anything(kv: str | None, tmp_path: Path) -> None:
    class Counted(type(AutoModelForCausalLM.from_config(tiny_config("llama")))):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.positional = len(args)
            return super().forward(*args, **kwargs)

    torch.manual_seed(0)
    plain = Counted(tiny_config("llama", attn_implementation="eager")).eval()
    wanted, text = plain(X).logits, plain.generate(X, max_new_tokens=4, do_sample=False)
    with penstock.wrap(plain, store=tmp_path / "store", host_memory="8MiB", kv_host_memory=kv) as model:
        assert torch.equal(model(X).logits, wanted)
        assert model.positional == 1
        assert torch.equal(model(X, torch.ones_like(X)).logits, wanted)
        assert model.positional == 2
        assert torch.equal(model.generate(X, max_new_tokens=4, do_sample=False), text)


def test_names_are_looked_up_once_for_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []

    def look(forward: Any) -> tuple[str, ...]:
        looked.append(forward)
        return positional_names(forward)

    monkeypatch.setattr(model_forward, "positional_names", look)
    models = [AutoModelForCausalLM.from_config(tiny_config("llama")).eval() for _ in range(2)]
    wanted = [plain(X, torch.ones_like(X)).logits for plain in models]
    for plain, logits in zip(models, wanted, strict=True):
        with penstock.wrap(plain, store=tmp_path / "store", host_memory="8MiB") as model:
            assert all(torch.equal(model(X, torch.ones_like(X)).logits, logits) for _ in range(3))
    assert len(looked) == 2
