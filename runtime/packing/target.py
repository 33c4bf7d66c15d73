"""The name of a bundle: what decides its content, as one digest."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...tiering.store.bundle.manifest import PLAIN
from ...tiering.store.bundle.reader import Bundle
from ..checkpoints.describe import Description
from ..checkpoints.layout import Layout
from .arrange.formats import Rules


@dataclass(frozen=True, slots=True)
class Target:
    """The ``folder`` that a bundle gets. ``identity`` names all that decides its content, ``digest`` the source's."""

    folder: Path
    identity: str
    digest: str


def find_target(
    store: Path,
    digest: str,
    description: Description,
    rules: Rules,
    ordered: Layout | None = None,
    seen: Sequence[str] = (),
    *,
    any_order: bool = True,
) -> Target:
    """The target in ``store`` for a source with ``digest``, so described, in the formats of ``rules``.

    ``ordered`` is the layout with experts in an order of their own. ``seen`` are digests of what formats are calibrated
    with. With neither, and ``any_order``, the latest bundle is taken that was made with either, if there is one.
    """
    kind = re.sub(r"[^\w.-]", "_", description.model.config.model_type) or "model"
    identity = _identify(digest, description, rules, description.layout)
    folder = store / f"{kind}-{identity[:16]}"
    if ordered is not None or seen:
        identity = _identify(digest, description, rules, ordered or description.layout, *seen)
        folder = folder.with_name(f"{folder.name}-{identity[:8]}")
    elif any_order:
        folder = _latest_special(folder) or folder
    return Target(folder, identity, digest)


def _identify(digest: str, description: Description, rules: Rules, layout: Layout, *seen: str) -> str:
    """SHA-256 of all that decides what the bundle holds. The layout too: it depends on transformers' version. Not the
    drives: a bundle holds the same, however it is dealt."""
    decides = [digest, str(description.dtype), str(rules), PLAIN, layout.digest(), *description.marks, *seen]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _latest_special(folder: Path) -> Path | None:
    """The latest bundle of what ``folder`` is for that was made with a routing trace or a text, if there is one."""
    found = [path for path in folder.parent.glob(f"{folder.name}-{'[0-9a-f]' * 8}") if Bundle.is_bundle(path)]
    return max(found, key=lambda path: (path / "manifest.json").stat().st_mtime_ns, default=None)
