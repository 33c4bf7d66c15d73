"""The prefix store: a folder of prefix files that several processes use at once, within one quota.

A file is written aside, made durable, renamed, then indexed; its name says how many bytes it will have, so that what is
being written counts already. Files are never altered: they are shortened from the end, or removed. A reader either
keeps what it has opened or finds that bytes are missing, and their checksum says which of both. The index is what the
headers of the files say, kept to start faster. When a file was last used is its time of modification.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from ....kernels.memory.arena import Arena
from ...driving.small_files import make_folder, sync_folder
from ...errors import ConfigError, FlashFull, PrefixDamaged, PrefixError
from ...prefix.breakeven import Speeds
from ...prefix.chain import Chain
from ...prefix.header import Header, lay_out
from ...prefix.roles import StoredTensor
from ...prefix.tree import Cut, Record, longest, make_room, record_of, stale
from ...progress import Progress, Quiet
from ..bundle.folder import PREFIXES, prepare
from . import prefix_notes as notes
from .found import Found
from .prefix_file import STAGING, FileAside, Fill, PrefixFile, write
from .prefix_folder import SUFFIX, PrefixFolder

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
            make_folder(self.folder)
            if self.folder.stat().st_mode & 0o077:
                self.folder.chmod(0o700)
        except OSError as error:
            raise ConfigError(f"{self.folder} cannot be used: {error.strerror}; choose another [store] path") from error
        self._files = PrefixFolder(self.folder, direct=direct)
        with self._files.lock():
            self._files.sweep()

    # --- what is there ---

    def records(self) -> list[Record]:
        """What every usable file holds now."""
        return self._files.records()

    def used_bytes(self) -> int:
        """Bytes that count against the quota: of all files, and of those being written what they will have.

        Waits for changes that are under way: half-way, files that go and files that come may both count.
        """
        with self._files.lock():
            return self._files.used_bytes()

    def longest(self, chain: Chain, *, with_state: bool) -> int:
        """How many leading blocks of ``chain`` are stored; ``with_state``, up to where a state is."""
        return longest(self._files.records(), chain.hashes, with_state=with_state).blocks

    def open(self, chain: Chain, *, with_state: bool) -> Found | None:
        """The longest stored prefix of ``chain``, open for reading; None if there is none. ``with_state`` only one that
        has its state. Each file's token ids are compared with the chain's."""
        without: set[str] = set()
        while (match := longest(self._files.records(), chain.hashes, with_state=with_state, without=without)).blocks:
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
            self._files.forget(wrong)
        return None

    def first_tokens(self, record: Record) -> tuple[int, ...]:
        """The tokens of the first run of blocks of the prefix that ``record`` ends. Raises what PrefixFile raises."""
        holders = {hash_: other for other in self._files.records() for hash_ in other.hashes}
        while record.first:
            record = holders[record.parent]
        with PrefixFile(self.folder / record.name, direct=self._direct) as file:
            return file.header.tokens

    def touch(self, names: Iterable[str]) -> None:
        """These files are in use: they go last."""
        for name in names:
            with suppress(OSError):
                os.utime(self.folder / name, follow_symlinks=False)

    # --- admission, measurements ---

    def seen(self, chain: Chain) -> int:
        """How many leading blocks of ``chain`` came before."""
        return notes.read_seen(self.folder, self._most_seen).leading(chain.hashes)

    def note(self, chain: Chain) -> None:
        """Remember that ``chain`` came."""
        with self._files.lock():
            notes.note_seen(self.folder, chain.hashes, self._most_seen)

    def speeds(self, root: str) -> Speeds:
        """What was measured of the model whose chains begin with ``root``."""
        return notes.read_speeds(self.folder).get(root, Speeds())

    def measured(self, root: str, change: Callable[[Speeds], Speeds]) -> None:
        """Remember a measurement."""
        with self._files.lock():
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
        parts: Sequence[StoredTensor],
        state_parts: Sequence[StoredTensor] = (),
        explicit: bool = False,
    ) -> int:
        """Store what is not there yet of ``chain``: the bytes written. 0 where it all is there, or finds no room.

        ``fill`` is asked for the tensors ``parts`` of each new block in turn, then for ``state_parts`` of the whole.
        Where the quota has no room for all, the beginning is stored, unless there is a state.
        Raises FlashFull when the drive is full, PrefixError when it fails.
        """
        with self._files.lock():
            header, evicted = self._plan(chain, label, parts, state_parts, explicit)
            if header is None:
                return 0
            self._files.cut(evicted)
            aside = FileAside(self.folder, header.end)
        chain = chain.first(header.first + len(header.blocks))
        with aside:
            header = write(aside, header, fill, direct=self._direct)
            with self._files.lock():
                if not self._is_wanted(chain, header):
                    return 0
                name = aside.path.name.partition(".")[0] + SUFFIX
                os.rename(aside.path, self.folder / name)
                sync_folder(self.folder)
                self._files.add(record_of(name, header, chain.hashes[header.first :]))
                notes.write_index(self.folder, self._files.records())
        return header.end

    def _plan(
        self,
        chain: Chain,
        label: str,
        parts: Sequence[StoredTensor],
        state_parts: Sequence[StoredTensor],
        explicit: bool,
    ) -> tuple[Header | None, list[Cut]]:
        """The file to be written, and what goes for it."""
        self._files.sweep()
        self._files.cut(self._files.damaged())
        records = self._files.records()
        match = longest(records, chain.hashes, with_state=False)
        self.touch(match.names)
        if state_parts and chain.hashes[-1] in {record.state for record in records}:
            state_parts = ()
        new = len(chain.hashes) - match.blocks
        if not new and not state_parts:
            return None, []
        beside = self._files.used_bytes() - sum(record.length for record in records)
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
        wanted = self._files.used_bytes() + header.end + index - self.quota
        return header, make_room(records, wanted, spared=(header.parent,))

    def _is_wanted(self, chain: Chain, header: Header) -> bool:
        """Whether a file just written belongs to the store: what it follows is there still, it is not there itself."""
        records = self._files.records()
        there = longest(records, chain.hashes, with_state=False).blocks
        has_state = not header.state or chain.hashes[-1] in {record.state for record in records}
        return there >= header.first and not (there == len(chain.hashes) and has_state)

    # --- removing ---

    def drop(self, name: str, length: int) -> None:
        """What lies behind ``length`` bytes of the file ``name`` is damaged: let go of it, and of what follows it."""
        try:
            with self._files.lock():
                self._files.cut([Cut(name, length)])
                self._files.sweep()
        except FlashFull as error:  # some file systems need room to take something away
            raise PrefixError(str(error)) from error

    def prune(
        self,
        *,
        to: int | None = None,
        before: int | None = None,
        label: str | None = None,
        root: str | None = None,
        everything: bool = False,
    ) -> int:
        """Remove prefixes; the bytes that came free. Those of the model ``label``, those of chains behind ``root``,
        those not used since ``before`` (in nanoseconds), the least recently used until all files have ``to`` bytes at
        most; ``everything``, also files that cannot be read."""
        with self._files.lock():
            self._files.sweep()
            records = self._files.records()
            gone = [record.name for record in records if everything or label == record.label or root == record.root]
            if everything:
                gone += [entry.name for entry, _ in self._files.entries() if self._files.is_unusable(entry.name)]
            if before is not None:
                gone += [record.name for record in stale(records, before)]
            freed = self._files.cut(Cut(name, 0) for name in gone)
            if to is not None:
                freed += self._files.cut(self._files.damaged())
                freed += self._files.cut(make_room(self._files.records(), self._files.used_bytes() - to))
            notes.write_index(self.folder, self._files.records())
        return freed

    def verify(self, progress: Progress | None = None) -> list[PrefixError]:
        """Read every file; what is wrong with them, each error naming its file."""
        progress = progress or Quiet()
        wrong: list[PrefixError] = []
        sizes = {entry.name: status.st_size for entry, status in self._files.entries() if entry.name.endswith(SUFFIX)}
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
