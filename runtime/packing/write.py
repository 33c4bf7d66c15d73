"""Write a bundle, the last stage of packing: journaled blocks with checksums, the model folder, the manifest."""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from ...tiering.errors import FlashFull
from ...tiering.progress import Progress
from ...tiering.store.bundle.folder import PARTIAL, ensure_room
from ...tiering.store.bundle.manifest import BundleDrive, Manifest
from ...tiering.store.bundle.shelf import shelved, when
from ...tiering.store.bundle.stripes import parts_of
from ...tiering.store.bundle.writer import BundleWriter
from ...tiering.units import format_size
from ..checkpoints.files.model_files import write_model_folder
from ..checkpoints.layout import Layout
from .stream.blocks import stream_blocks
from .stream.encoding import EncodedWeights
from .stream.threads import one_torch_thread

_NAMED = 3
"""Models that an error names."""


def write_bundle(
    writer: BundleWriter,
    layout: Layout,
    weights: EncodedWeights,
    manifest: Manifest,
    write_model: Callable[[Path], None],
    progress: Progress,
    room: int = 0,
) -> None:
    """Write the blocks of ``layout`` that ``writer`` does not have yet, and finish the bundle. ``room`` bytes are for
    what is read ahead.

    ``manifest`` lacks files, drives and blocks. ``write_model`` writes configuration and tokenizer into a folder.
    Raises the errors of the writer and of the weights. KeyboardInterrupt says how to continue.
    """
    progress.start("packing", layout.total_bytes)
    try:
        progress.advance(writer.done_bytes)
        with one_torch_thread():
            left = layout.blocks[writer.done :]
            weights.expect_all(left)
            with closing(stream_blocks(left, weights, room)) as stream:
                for block, pieces in stream:
                    writer.append(pieces)
                    progress.advance(block.extent.length)
        write_model_folder(writer.folder / "model", write_model)
        writer.finish(manifest)
    except KeyboardInterrupt:
        percent = 100 * writer.done_bytes // max(1, layout.total_bytes)
        raise KeyboardInterrupt(
            f"packing was interrupted at {percent} %; run the same again to go on from there, or delete {writer.folder}"
        ) from None
    finally:
        progress.finish()


def check_room(
    bundle: Path, layout: Layout, drives: Sequence[BundleDrive], stripes: Sequence[Path], limit: int | None
) -> None:
    """Raise FlashFull unless each of ``drives`` has room for its share of ``layout``, and it fits within ``limit``
    bytes in the store and its ``stripes`` together."""
    folders = [bundle.with_name(bundle.name + PARTIAL), *(Path(drive.folder) for drive in drives[1:])]
    needs = dict.fromkeys(folders, 0)
    for file in layout.files:
        needs[folders[file.drive]] += file.length
    store = bundle.parent
    try:
        ensure_room(store, needs, limit, elsewhere=[part for stripe in stripes for part in parts_of(store, stripe)])
    except FlashFull as error:
        raise FlashFull(f"{error}{_what_could_go(store)}") from error


def _what_could_go(store: Path) -> str:
    """The models that were not used for longest, for an error."""
    longest = shelved(store)[::-1][:_NAMED]
    named = ", ".join(f"{each.name} ({format_size(each.size)}, last used {when(each.used)})" for each in longest)
    return f"; not used for longest: {named}; penstock rm removes one" if named else ""
