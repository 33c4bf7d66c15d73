"""The prefix store: a folder of prefix files that several processes use at once, within one quota.

A file is written aside, made durable, renamed, then indexed; its name says how many bytes it will have, so that what is
being written counts already. Files are never altered: they are shortened from the end, or removed. A reader either
keeps what it has opened or finds that bytes are missing, and their checksum says which of both. The index is what the
headers of the files say, kept to start faster. When a file was last used is its time of modification.
"""

import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ....kernels.io.system import lock
from ....kernels.memory.arena import Arena
from ...driving.small_files import sync_folder
from ...errors import ConfigError, PrefixDamaged, PrefixError, PrefixVersionError
from ...prefix.breakeven import Speeds
from ...prefix.chain import Chain
from ...prefix.header import Header, Part, lay_out
from ...prefix.tree import Cut, Record, longest, make_room, orphans, record_of, stale
from ...progress import Progress, Quiet
from ..bundle.folder import PARTIAL, PREFIXES, locked, prepare
from . import prefix_notes as notes
from .found import Found
from .prefix_file import STAGING, Fill, PrefixFile, is_abandoned, write

SUFFIX = ".kv"
_SEEN = 1 << 14
_BYTES_PER_SEEN = 1 << 12  # of quota


class PrefixStore:
    """The prefixes in ``store``, within ``quota`` bytes for all files there. For several threads and processes.

    ``direct`` as for DirectFile. Raises ConfigError where the folder cannot be used.
    """

    def __init__(self, store: Path, quota: int, *, direct: bool | None = None) -> None:
        self.folder = prepare(store) / PREFIXES
        self.quota = quota
        self._direct = direct
        self._most_seen = min(_SEEN, quota // _BYTES_PER_SEEN)
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            if self.folder.stat().st_mode & 0o077:
                self.folder.chmod(0o700)
        except OSError as error:
            raise ConfigError(f"{self.folder} cannot be used: {error.strerror}; choose another [store] path") from error
        self._known: dict[str, Record] = notes.read_index(self.folder)
        self._unusable: dict[str, PrefixError] = {}
        self._scanning = threading.Lock()
        with self._alone():
            self._sweep()

    def _alone(self) -> AbstractContextManager[bool]:
        """No other process or thread changes the folder meanwhile."""
        return locked(self.folder / "store")

    # --- what is there ---

    def records(self) -> list[Record]:
        """What every usable file holds now."""
        with self._scanning:
            sizes = {entry.name: status for entry, status in self._entries() if entry.name.endswith(SUFFIX)}
            for name in self._known.keys() - sizes.keys():
                del self._known[name]
            for name in sizes.keys() - self._known.keys() - self._unusable.keys():
                self._learn(name)
            return [
                self._known[name].as_of(status.st_size, status.st_mtime_ns)
                for name, status in sorted(sizes.items())
                if name in self._known
            ]

    def _entries(self) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process has removed it meanwhile
                    yield entry, entry.stat()

    def _learn(self, name: str) -> None:
        try:
            with PrefixFile(self.folder / name, direct=self._direct) as file:
                self._known[name] = record_of(name, file.header, file.hashes())
        except (PrefixDamaged, PrefixVersionError) as error:
            self._unusable[name] = error
        except (FileNotFoundError, PrefixError):
            pass  # it may be there, or readable, the next time

    def used_bytes(self) -> int:
        """Bytes that count against the quota: of all files, and of those being written what they will have."""
        return sum(_reserved(entry.name, status.st_size) for entry, status in self._entries())

    def longest(self, chain: Chain, *, with_state: bool) -> int:
        """How many leading blocks of ``chain`` are stored; ``with_state``, up to where a state is."""
        return longest(self.records(), chain.hashes, with_state=with_state).blocks

    def open(self, chain: Chain, *, with_state: bool) -> Found | None:
        """The longest stored prefix of ``chain``, open for reading; None if there is none. ``with_state`` only one that
        has its state. Each file's token ids are compared with the chain's."""
        without: set[str] = set()
        while (match := longest(self.records(), chain.hashes, with_state=with_state, without=without)).blocks:
            files: dict[str, PrefixFile] = {}
            with ExitStack() as opened:
                for name in match.names:
                    try:
                        files[name] = opened.enter_context(PrefixFile(self.folder / name, direct=self._direct))
                    except PrefixDamaged:
                        self.drop(name, 0)
                    except (PrefixError, FileNotFoundError):
                        pass
                found = Found.checked(self, chain, match, files) if files.keys() == match.names else None
                if found is not None:
                    opened.pop_all()
                    return found
            wrong = (match.names - files.keys()) or match.names
            without |= wrong
            self._forget(wrong)
        return None

    def _forget(self, names: Iterable[str]) -> None:
        """The index has been wrong about these: their headers say."""
        with self._scanning:
            for name in names:
                self._known.pop(name, None)

    def first_tokens(self, record: Record) -> tuple[int, ...]:
        """The tokens of the first run of blocks of the prefix that ``record`` ends. Raises what PrefixFile raises."""
        holders = {hash_: other for other in self.records() for hash_ in other.hashes}
        while record.first:
            record = holders[record.parent]
        with PrefixFile(self.folder / record.name, direct=self._direct) as file:
            return file.header.tokens

    def touch(self, names: Iterable[str]) -> None:
        """These files are in use: they go last."""
        for name in names:
            with suppress(OSError):
                os.utime(self.folder / name)

    # --- admission, measurements ---

    def seen(self, chain: Chain) -> int:
        """How many leading blocks of ``chain`` came before."""
        return notes.read_seen(self.folder, self._most_seen).leading(chain.hashes)

    def note(self, chain: Chain) -> None:
        """Remember that ``chain`` came."""
        with self._alone():
            notes.note_seen(self.folder, chain.hashes, self._most_seen)

    def speeds(self, root: str) -> Speeds:
        """What was measured of the model whose chains begin with ``root``."""
        return notes.read_speeds(self.folder).get(root, Speeds())

    def measured(self, root: str, change: Callable[[Speeds], Speeds]) -> None:
        """Remember a measurement."""
        with self._alone():
            known = notes.read_speeds(self.folder)
            changed = change(known.pop(root, Speeds()))
            notes.write_speeds(self.folder, dict(list(known.items())[-63:]) | {root: changed})

    # --- writing ---

    def save(
        self,
        chain: Chain,
        fill: Fill,
        *,
        label: str,
        parts: Sequence[Part],
        state_parts: Sequence[Part] = (),
        explicit: bool = False,
    ) -> int:
        """Store what is not there yet of ``chain``: the bytes written. 0 where it all is there, or finds no room.

        ``fill`` is asked for the tensors ``parts`` of each new block in turn, then for ``state_parts`` of the whole.
        Where the quota has no room for all, the beginning is stored, unless there is a state.
        Raises FlashFull when the drive is full, PrefixError when it fails.
        """
        with self._alone():
            header, evicted = self._plan(chain, label, parts, state_parts, explicit)
            if header is None:
                return 0
            self._cut(evicted)
            aside = _Aside(self.folder, header.end)
        chain = chain.first(header.first + len(header.blocks))
        with aside:
            header = write(aside, header, fill, direct=self._direct)
            with self._alone():
                if not self._is_wanted(chain, header):
                    return 0
                name = aside.path.name.partition(".")[0] + SUFFIX
                os.rename(aside.path, self.folder / name)
                sync_folder(self.folder)
                with self._scanning:
                    self._known[name] = record_of(name, header, chain.hashes[header.first :])
                notes.write_index(self.folder, self.records())
        return header.end

    def _plan(
        self, chain: Chain, label: str, parts: Sequence[Part], state_parts: Sequence[Part], explicit: bool
    ) -> tuple[Header | None, list[Cut]]:
        """The file to be written, and what goes for it."""
        self._sweep()
        self._cut(self._damaged())
        records = self.records()
        match = longest(records, chain.hashes, with_state=False)
        self.touch(match.names)
        if state_parts and chain.hashes[-1] in {record.state for record in records}:
            state_parts = ()
        new = len(chain.hashes) - match.blocks
        if not new and not state_parts:
            return None, []
        beside = self.used_bytes() - sum(record.length for record in records)
        most = self.quota - beside - sum(record.length for record in records if record.name in match.names)
        while True:
            header = lay_out(chain, match.blocks, label=label, parts=parts, state_parts=state_parts, explicit=explicit)
            index = 1024 + 256 * len(header.blocks)  # what it adds to the index
            if header.end + index <= most:
                break
            size = sum(part.room for part in parts)
            new = min(new - 1, (most - index - header.start) // max(1, size))
            if state_parts or new <= 0:
                return None, []
            chain = chain.first(match.blocks + new)
        wanted = self.used_bytes() + header.end + index - self.quota
        return header, make_room(records, wanted, spared=(header.parent,))

    def _is_wanted(self, chain: Chain, header: Header) -> bool:
        """Whether a file just written belongs to the store: what it follows is there still, it is not there itself."""
        records = self.records()
        there = longest(records, chain.hashes, with_state=False).blocks
        has_state = not header.state or chain.hashes[-1] in {record.state for record in records}
        return there >= header.first and not (there == len(chain.hashes) and has_state)

    # --- removing ---

    def _sweep(self) -> None:
        """Remove what processes that are gone have left, and what nobody can reach. The lock is held."""
        for entry, _ in list(self._entries()):
            if entry.name.endswith(PARTIAL) and is_abandoned(self.folder / entry.name):
                os.unlink(entry.path)
        self._cut(Cut(record.name, 0) for record in orphans(self.records()))

    def _damaged(self) -> list[Cut]:
        """Files whose header cannot be read: nobody can use them."""
        return [Cut(name, 0) for name, error in self._unusable.items() if isinstance(error, PrefixDamaged)]

    def _cut(self, cuts: Iterable[Cut]) -> int:
        """Shorten and remove files; the bytes that came free. The lock is held."""
        freed = 0
        for name, length in ((cut.name, cut.length) for cut in cuts):
            path = self.folder / name
            with suppress(FileNotFoundError):
                status = path.stat()
                if not length:
                    path.unlink()
                elif length < status.st_size:
                    os.truncate(path, length)
                    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
                freed += max(0, status.st_size - length)
        return freed

    def drop(self, name: str, length: int) -> None:
        """What lies behind ``length`` bytes of the file ``name`` is damaged: let go of it, and of what follows it."""
        with self._alone():
            self._cut([Cut(name, length)])
            self._sweep()

    def prune(
        self,
        *,
        to: int | None = None,
        before: int | None = None,
        label: str | None = None,
        everything: bool = False,
    ) -> int:
        """Remove prefixes; the bytes that came free. Those of the model ``label``, those not used since ``before`` (in
        nanoseconds), the least recently used until all files have ``to`` bytes at most; ``everything``, also files that
        cannot be read."""
        with self._alone():
            self._sweep()
            records = self.records()
            gone = [record.name for record in records if everything or record.label == label]
            if everything:
                gone += [entry.name for entry, _ in self._entries() if entry.name in self._unusable]
            if before is not None:
                gone += [record.name for record in stale(records, before)]
            freed = self._cut(Cut(name, 0) for name in gone)
            if to is not None:
                freed += self._cut(self._damaged())
                freed += self._cut(make_room(self.records(), self.used_bytes() - to))
            notes.write_index(self.folder, self.records())
        return freed

    def verify(self, progress: Progress | None = None) -> list[PrefixError]:
        """Read every file; what is wrong with them, each error naming its file."""
        progress = progress or Quiet()
        wrong: list[PrefixError] = []
        sizes = {entry.name: status.st_size for entry, status in self._entries() if entry.name.endswith(SUFFIX)}
        progress.start("checking prefixes", sum(sizes.values()))
        buffer = Arena(STAGING, huge_pages=False).view(0, STAGING)
        for name, size in sorted(sizes.items()):
            try:
                with PrefixFile(self.folder / name, direct=self._direct) as file:
                    file.check(buffer)
            except FileNotFoundError:
                pass  # evicted meanwhile
            except PrefixError as error:
                wrong.append(error)
            progress.advance(size)
        progress.finish()
        return wrong


class _Aside:
    """A file being written, alive for as long as this is open; removed at the end if it has still this name.
    The store's lock is held while it is made."""

    def __init__(self, folder: Path, length: int) -> None:
        self.path = folder / f"{uuid.uuid4().hex}.{length}{PARTIAL}"
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        lock(self.descriptor, wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


def _reserved(name: str, size: int) -> int:
    """Bytes that a file will have."""
    if not name.endswith(PARTIAL):
        return size
    length = name.removesuffix(PARTIAL).rpartition(".")[2]
    return max(size, int(length) if length.isdigit() else 0)
