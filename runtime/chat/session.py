"""A chat: reads what the user says, does what is asked, and shows the answers."""

from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

from ...tiering.errors import PenstockError
from ..serving.text.replies import Said
from .commands import Command, help_lines, parse
from .conversation import Conversation
from .interrupting import until_interrupted
from .partner import Partner
from .reading import Reader
from .saved import SavedChats
from .screen import Screen


class Session:
    """A chat with ``partner``."""

    def __init__(self, partner: Partner, reader: Reader, screen: Screen, saved: SavedChats, chat: Conversation) -> None:
        self._partner, self._reader, self._screen, self._saved, self.chat = partner, reader, screen, saved, chat
        self._unanswered: str | None = None
        """The latest question, where it has no answer, so that it is not in the chat."""
        self._again = 0
        self._warned = False
        self.failed = False
        """Whether the latest answer has failed."""

    async def run(self) -> None:
        """Go on until the user leaves."""
        while True:
            try:
                line = await self._reader.read()
            except EOFError:
                return
            except KeyboardInterrupt:
                if self._warned:
                    return
                self._warned = True
                self._screen.say("Ctrl-C once more leaves, and so does Ctrl-D")
                continue
            self._warned = False
            try:
                wanted = parse(line)
                if isinstance(wanted, Command):
                    if wanted.name == "exit":
                        return
                    await self._do(wanted)
                elif wanted:
                    await self._ask(wanted, again=0)
            except (PenstockError, ValueError) as error:
                self.failed = True
                self._screen.say(f"penstock: error: {error}")

    async def _do(self, command: Command) -> None:
        doings: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {
            "help": self._help,
            "system": self._system,
            "regenerate": self._regenerate,
            "new": self._new,
            "save": self._save,
            "load": self._load,
            "stats": self._stats,
        }
        await doings[command.name](command.argument)

    async def _ask(self, question: str, *, again: int) -> None:
        """Have ``question`` answered. A question without any answer is taken back."""
        self._unanswered, self._again, self.failed = question, again, False
        self.chat.ask(question)
        said: list[Said] = []
        answer = ""
        try:
            whole = await until_interrupted(self._show_answer(said))
        finally:
            answer = "".join(piece.text for piece in said if piece.kind == "content")
            if answer:
                self.chat.answer(answer)
                self._unanswered = None
            else:
                self.chat.take_back()
        if not whole:
            self._warned = True
            self._screen.say("stopped; Ctrl-C once more leaves" + ("" if answer else ", /regenerate asks again"))
        elif ending := self._explain_ending(reasoned=bool(said), answered=bool(answer)):
            self._screen.say(ending)

    def _explain_ending(self, *, reasoned: bool, answered: bool) -> str | None:
        """What is to be said about the end of the latest answer."""
        if self._partner.latest is not None and self._partner.latest.ending == "length":
            if reasoned and not answered:
                return "cut while the model reasoned, so there is no answer to keep: allow more tokens with -n"
            return "the answer was cut: it is as long as it may be"
        if answered:
            return None
        if reasoned:
            return "the model has only reasoned, so there is no answer to keep: /regenerate asks again"
        return "the first token of the model ended its answer: there is none"

    async def _show_answer(self, said: list[Said]) -> None:
        """Show the answer, and add its pieces to ``said``."""
        with self._screen.answer() as shown:
            async with aclosing(self._partner.answer(self.chat.messages(), self._again)) as pieces:
                async for piece in pieces:
                    said.append(piece)
                    shown.feed(piece.kind, piece.text)

    async def _help(self, _: str) -> None:
        self._screen.say(*help_lines())

    async def _system(self, text: str) -> None:
        if text:
            self.chat.system = text
        self._screen.say(self.chat.system or "the model is told nothing: /system TEXT")

    async def _regenerate(self, _: str) -> None:
        question = self._unanswered or self.chat.take_back()
        if question is None:
            raise ValueError("nothing was asked yet")
        await self._ask(question, again=self._again + 1)

    async def _new(self, _: str) -> None:
        self.chat = Conversation(self.chat.system)
        self._unanswered = None
        self._screen.say("a new chat")

    async def _save(self, name: str) -> None:
        if not name:
            raise ValueError("say under which name: /save NAME")
        self._screen.say(f"saved as {await self._saved.save(name, self.chat)}")

    async def _load(self, name: str) -> None:
        if not name:
            names = self._saved.names()
            self._screen.say(", ".join(names) or "no chats are saved; /save NAME saves this one")
            return
        self.chat = await self._saved.load(name)
        self._unanswered = None
        for turn in self.chat.turns:
            self._screen.turn(turn.role, turn.content)

    async def _stats(self, _: str) -> None:
        latest = self._partner.latest
        self._screen.say(*([f"latest answer: {latest}"] if latest else []), *self._partner.about())
