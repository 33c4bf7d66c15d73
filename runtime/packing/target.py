"""The name of a bundle: a digest of all that decides its content."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...tiering.store.bundle.folder import bundles_in
from ...tiering.store.bundle.manifest import PLAIN
from ...tiering.store.bundle.reader import Bundle
from ..checkpoints.describe import Description
from ..checkpoints.layout import Layout
from ..checkpoints.weights_note import WeightsNote, read_note
from .arrange.formats import Rules


@dataclass(frozen=True, slots=True)
class Target:
    """The ``folder`` of a bundle. ``identity`` is a digest of all that decides its content, ``digest`` the source's.
    ``weights`` says what decides its weights alone, None where that is all."""

    folder: Path
    identity: str
    digest: str
    weights: WeightsNote | None = None


def find_target(
    store: Path,
    digest: str,
    description: Description,
    rules: Rules,
    ordered: Layout | None = None,
    seen: Sequence[str] = (),
    *,
    any_order: bool = True,
    weights_digest: str | None = None,
) -> Target:
    """Return the target in ``store`` for a source with ``digest`` and ``description``, in the formats of ``rules``.

    ``ordered`` is the layout with experts in another order than by number. ``seen`` are digests of the calibration's
    inputs. With neither, and ``any_order``, the latest bundle that was made with one of them is taken, if there is one.
    ``weights_digest`` is that of what decides the source's weights alone: where no bundle is as the source, one that
    has its weights is taken.
    """
    kind = re.sub(r"[^\w.-]", "_", description.model.config.model_type) or "model"
    identity = _identify(digest, description, rules, description.layout)
    folder = store / f"{kind}-{identity[:16]}"
    if ordered is not None or seen:
        identity = _identify(digest, description, rules, ordered or description.layout, *seen)
        folder = folder.with_name(f"{folder.name}-{identity[:8]}")
    elif any_order:
        folder = _latest_special(folder) or folder
    if weights_digest is None:
        return Target(folder, identity, digest)
    plain = _identify(weights_digest, description, rules, description.layout)
    own = _identify(weights_digest, description, rules, ordered or description.layout, *seen)
    note = WeightsNote(weights_digest, own, plain)
    if not Bundle.is_bundle(folder):
        folder = _latest_alike(store, kind, note, any_order=any_order and ordered is None and not seen) or folder
    return Target(folder, identity, digest, note)


def _identify(digest: str, description: Description, rules: Rules, layout: Layout, *seen: str) -> str:
    """Return the SHA-256 of all that decides the bundle's content.

    That includes the layout, which depends on transformers' version. It does not include the drives: the content is the
    same on any drives.
    """
    decides = [digest, str(description.dtype), str(rules), PLAIN, layout.digest(), *description.marks, *seen]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _latest_alike(store: Path, kind: str, note: WeightsNote, *, any_order: bool) -> Path | None:
    """The latest bundle in ``store`` with the weights that ``note`` is of, if there is one."""

    def alike(folder: Path) -> bool:
        there = read_note(folder)
        return there is not None and (note.plain == there.plain if any_order else note.own == there.own)

    return _latest(path for path in bundles_in(store) if path.name.startswith(f"{kind}-") and alike(path))


def _latest_special(folder: Path) -> Path | None:
    """Return the latest bundle like ``folder`` that was made with a routing trace or a text. None if there is none."""
    return _latest(path for path in folder.parent.glob(f"{folder.name}-{'[0-9a-f]' * 8}") if Bundle.is_bundle(path))


def _latest(bundles: Iterable[Path]) -> Path | None:
    ages: dict[Path, int] = {}
    for path in bundles:
        with suppress(OSError):  # somebody deletes it
            ages[path] = (path / "manifest.json").stat().st_mtime_ns
    return max(ages, key=lambda path: ages[path], default=None)
