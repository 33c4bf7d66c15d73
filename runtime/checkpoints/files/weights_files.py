"""Which files of a folder hold a checkpoint's weights: one, or the shards that an index names; never pickle."""

from pathlib import Path
from typing import Any

from ....tiering.errors import CheckpointError
from .json_file import INDEX_LIMIT, read_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LONGEST_NAME, _LONGEST_PATH = 255, 1024
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def find_weights(folder: Path, explicit: Any = None) -> tuple[Path, ...]:
    """The files, as transformers chooses them. ``explicit`` is the name that the configuration gives, if it does.

    Raises CheckpointError when there are none, or when one that is needed is not there.
    """
    names = [explicit] if isinstance(explicit, str) and _is_inside(explicit) else [SINGLE, INDEX]
    for name in names:
        path = folder / name
        check_link(path)
        if path.is_file() and name.endswith(".safetensors"):
            return (path,)
        if path.is_file() and name.endswith(".index.json"):
            return _shards(path)
    raise _nothing_in(folder)


def read_index(index: Path) -> dict[str, str]:
    """The file of each tensor that ``index`` names. Raises CheckpointError when it is damaged."""
    weight_map = read_object(index, INDEX_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} is damaged (it has no weight_map); fetch the checkpoint again")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} is damaged (weight_map maps names to file names); fetch the checkpoint again")
    return weight_map


def check_link(path: Path) -> None:
    """Raise CheckpointError if ``path`` is a link to something that is not there."""
    if path.is_symlink() and not path.exists():
        raise CheckpointError(
            f"{path} is a link to {path.readlink()}, which is not there; fetch the checkpoint again, or mend the link"
        )


def list_some(names: list[str]) -> str:
    """At most five names for a message."""
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest


def _shards(index: Path) -> tuple[Path, ...]:
    names = sorted(set(read_index(index).values()))
    odd = [name for name in names if not _is_inside(name)]
    if odd:
        raise CheckpointError(f"{index} names files outside of its folder: {list_some(odd)}")
    for name in names:
        check_link(index.parent / name)
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {list_some(missing)}, which its index names; fetch the checkpoint again"
        )
    return tuple(index.parent / name for name in names)


def _nothing_in(folder: Path) -> CheckpointError:
    """What to say of a ``folder`` without weights."""
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return CheckpointError(
            f"{folder} has its weights as pickle ({list_some(pickles)}), which can run code when it is read; "
            "penstock reads safetensors only: convert it with transformers' save_pretrained"
        )
    if (folder / "adapter_model.safetensors").is_file():
        return CheckpointError(f"{folder} is an adapter, not a model; merge it into its base model first")
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    hint = f"; {list_some(others)} is there, but no {INDEX}" if others else ""
    return CheckpointError(f"{folder} is not a checkpoint: it has no {SINGLE}{hint}")


def _is_inside(name: str) -> bool:
    """Whether ``name`` is that of a file, and stays inside the folder that it is looked up in."""
    parts = Path(name).parts
    if not parts or not name.isprintable() or len(name) > _LONGEST_PATH:
        return False
    short = all(len(part.encode()) <= _LONGEST_NAME for part in parts)
    return short and not Path(name).is_absolute() and ".." not in parts
