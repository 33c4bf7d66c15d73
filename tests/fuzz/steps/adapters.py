"""Adapters of PEFT."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ..fields import pick
from ..outcome.attempt import Raised, attempt
from ..side import Side
from .step import Step


def _targets(side: Side) -> list[str]:
    """The names of linear modules inside of layers, at most three."""
    paths = [name.removesuffix(".base_layer") for name, _ in side.modules(nn.Linear)]
    inside = [path for path in paths if any(part.isdigit() for part in path.split("."))]
    names = [path.rpartition(".")[2] for path in inside if "vision" not in path and "experts" not in path]
    return sorted(set(names) - {"gate", "router"})[:3]


def _config(side: Side, kind: str = "lora") -> Any:
    import peft

    if kind == "ia3":
        return peft.IA3Config(target_modules=_targets(side), feedforward_modules=[], task_type="CAUSAL_LM")
    more = {"dora": {"use_dora": True}, "rslora": {"use_rslora": True}, "pissa": {"init_lora_weights": "pissa"}}
    return peft.LoraConfig(r=4, target_modules=_targets(side), task_type="CAUSAL_LM", **more.get(kind, {}))


def _randomise(model: Any, name: str) -> None:
    """Give the adapter ``name`` numbers that change what the model says."""
    torch.manual_seed(len(name) + ord(name[0]))
    for key, weight in model.named_parameters():
        if f".{name}." in key or key.endswith(f".{name}"):
            weight.data = torch.randn(weight.shape).to(weight.dtype) * 0.2


@dataclass(frozen=True)
class AddAdapter(Step):
    """An adapter comes, in one of the ways that there are."""

    likelihood: ClassVar[int] = 8

    way: str = pick("add_adapter", "get_peft_model", "from_pretrained", "load_adapter")
    name: str = pick("a", "b")
    kind: str = pick("lora", "lora", "lora", "dora", "rslora", "ia3", "pissa")

    def run(self, side: Side) -> Any:
        import peft

        if not _targets(side) or self.name in side.adapters:
            return
        wrapped = isinstance(side.model, peft.PeftModel)
        if self.way == "add_adapter" and not wrapped:
            side.model.add_adapter(_config(side, self.kind), self.name)
        elif wrapped:
            side.model.add_adapter(self.name, _config(side, self.kind))
        elif self.way == "get_peft_model" and not side.adapters:
            side.model = peft.get_peft_model(side.model, _config(side, self.kind), self.name)
        elif self.way == "from_pretrained" and not side.adapters:
            saved = _saved(side, self.name, self.kind)
            side.model = peft.PeftModel.from_pretrained(side.model, str(saved), adapter_name=self.name)
        elif self.way == "load_adapter":
            side.model.load_adapter(str(_saved(side, self.name, self.kind)), self.name)
        else:
            return
        _randomise(side.model, self.name)
        side.model.eval()
        side.adapters.append(self.name)

    def after_refusal(self, ours: Side, theirs: Side) -> str:
        """PEFT takes nothing back when it cannot go on: a user opens a model again that has a part of an adapter. Then
        nothing may be computed with it before."""
        if not any(self._is_in(module) for module in ours.base.modules()):
            return ""
        computed = attempt(lambda: ours.base(**ours.inputs(1, 4)))
        if not (isinstance(computed, Raised) and computed.is_refusal):
            return f"with a part of an adapter it gives {computed}"
        for side in (ours, theirs):
            side.open()
        return ""

    def _is_in(self, module: Any) -> bool:
        parts = getattr(module, "adapter_layer_names", ())
        return any(self.name in getattr(module, part, ()) for part in parts)


def _saved(side: Side, name: str, kind: str) -> Path:
    """A folder with an adapter for the model, made on a model of transformers'."""
    import peft
    from transformers import AutoModelForCausalLM

    folder = side.folder / f"adapter-{name}-{kind}"
    if not folder.exists():
        torch.manual_seed(3)
        plain = AutoModelForCausalLM.from_pretrained(side.written.plain, trust_remote_code=True)
        made = peft.get_peft_model(plain, _config(side, kind))
        _randomise(made, "default")
        made.save_pretrained(str(folder))
    return folder


@dataclass(frozen=True)
class SwitchAdapter(Step):
    """Another adapter, or none."""

    likelihood: ClassVar[int] = 6

    to: str = pick("first", "last", "none", "on", "both")

    def run(self, side: Side) -> Any:
        import peft

        if not side.adapters:
            return
        wrapped = isinstance(side.model, peft.PeftModel)
        if self.to in ("none", "on"):
            if wrapped:
                layers = side.model.base_model
                (layers.disable_adapter_layers if self.to == "none" else layers.enable_adapter_layers)()
            else:
                (side.model.disable_adapters if self.to == "none" else side.model.enable_adapters)()
        elif self.to == "both":
            layers = side.model.base_model if wrapped else side.model
            layers.set_adapter([*side.adapters])
        else:
            side.model.set_adapter(side.adapters[0 if self.to == "first" else -1])


@dataclass(frozen=True)
class DropAdapter(Step):
    """An adapter goes: unloaded, deleted, or merged into the weights."""

    likelihood: ClassVar[int] = 4

    how: str = pick("unload", "delete", "merge", "merge and unload", "within disable", "save")

    def after_refusal(self, ours: Side, theirs: Side) -> str:
        """What was merged before the refusal stays merged, and rounds otherwise: both are opened anew."""
        ours.open()
        theirs.open()
        return ""

    def run(self, side: Side) -> Any:
        import peft

        if not side.adapters:
            return None
        if not isinstance(side.model, peft.PeftModel):
            if self.how == "delete":
                side.model.delete_adapter(side.adapters.pop())
            elif self.how == "save":
                folder = side.folder / f"saved-{side.ours}"
                side.model.save_pretrained(folder)
                return sorted(file.name for file in folder.glob("adapter*"))
            return None
        if self.how == "within disable":
            with side.model.disable_adapter(), torch.no_grad():
                return side.model(**side.inputs(1, 6)).logits
        if self.how == "delete":
            side.model.delete_adapter(side.adapters.pop())
        elif self.how == "merge":
            side.model.merge_adapter()
        elif self.how == "save":
            folder = side.folder / f"saved-{side.ours}"
            side.model.save_pretrained(str(folder))
            return sorted(str(file.relative_to(folder)) for file in folder.rglob("adapter*"))
        else:
            side.model = side.model.unload() if self.how == "unload" else side.model.merge_and_unload()
            side.adapters.clear()
        return None
