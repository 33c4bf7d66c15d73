"""The class of a model that was wrapped, kept beside its configuration, so that the bundle is built as that class."""

import importlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.auto_factory import add_generation_mixin_to_remote_model

from ...tiering.errors import CheckpointError
from ...tiering.store.bundle.origin import CLASS_FILE
from .files.failures import reason
from .files.json_file import read_object

REMOTE_MODULES = "transformers_modules."
"""What the modules are called that transformers makes of code that comes with a model."""

_LIBRARY = "transformers."


def write_class(own: type[PreTrainedModel], folder: Path) -> None:
    """Note the class ``own`` in the model folder ``folder``."""
    (folder / CLASS_FILE).write_text(json.dumps({"module": own.__module__, "name": own.__qualname__}) + "\n")


def is_wrapped(folder: Path) -> bool:
    """Whether the model folder ``folder`` is that of a wrapped model."""
    return (folder / CLASS_FILE).is_file()


def read_class(folder: Path, *, trust_remote_code: bool) -> type[PreTrainedModel] | None:
    """The class noted in the model folder ``folder``; None if none is: the bundle was packed from a checkpoint.

    Raises CheckpointError for a class that is not transformers' own, unless its code is there and is trusted.
    """
    if not is_wrapped(folder):
        return None
    try:
        noted = read_object(folder / CLASS_FILE)
        module, name = str(noted["module"]), str(noted["name"])
        if module.startswith(_LIBRARY):
            found: Any = getattr(importlib.import_module(module), name)
        elif module.startswith(REMOTE_MODULES) and trust_remote_code:
            found = get_class_from_dynamic_module(f"{module.rpartition('.')[2]}.{name}", str(folder))
        else:
            found = None
    except CheckpointError:
        raise
    except Exception as error:  # transformers' modules object in their own ways to being imported
        raise CheckpointError(
            f"the class in {folder / CLASS_FILE} cannot be found ({reason(error)}); wrap the model again"
        ) from error
    if found is None:
        hint = "pass trust_remote_code=True, or " if module.startswith(REMOTE_MODULES) else ""
        raise CheckpointError(
            f"{folder.parent} holds the weights of a {name} of {module}, which transformers does not have; "
            f"{hint}build the model and wrap it again"
        )
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise CheckpointError(
            f"{module}.{name} in {folder / CLASS_FILE} is no model of transformers; wrap the model again"
        )
    return found


def own_model_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The causal class that the code beside a trusted ``config`` defines, as it is by now; None if there is none.

    transformers goes on with the code that it met first for a type of model, in this or another folder. A class that
    the user has registered comes first, as there.
    """
    reference = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if reference is None:
        return None
    mapping = AutoModelForCausalLM._model_mapping
    if type(config) in mapping and not mapping[type(config)].__module__.startswith((_LIBRARY, REMOTE_MODULES)):
        return None
    found = get_class_from_dynamic_module(reference, config.name_or_path)
    own: type[PreTrainedModel] = add_generation_mixin_to_remote_model(found)
    return own


def read_own_config(folder: Path, *, trust_remote_code: bool) -> PretrainedConfig:
    """The configuration in ``folder``, of the class that the code there defines by now. Raises as transformers does."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    reference = (getattr(config, "auto_map", None) or {}).get("AutoConfig")
    if not trust_remote_code or reference is None or not type(config).__module__.startswith(REMOTE_MODULES):
        return config
    own: type[PretrainedConfig] = get_class_from_dynamic_module(reference, str(folder))
    return config if own is type(config) else own.from_pretrained(folder)


def use_own_code(path: Path) -> None:
    """Make the configuration at ``path`` name the code beside it, not that of a repository on the hub."""
    config = json.loads(path.read_text())
    if isinstance(config.get("auto_map"), dict):
        config["auto_map"] = {key: _local(value) for key, value in config["auto_map"].items()}
        path.write_text(json.dumps(config, indent=2) + "\n")


def _local(reference: Any) -> Any:
    return reference.rpartition("--")[2] if isinstance(reference, str) else reference
