"""Several computations of one model on one thread, in lockstep: each weight that is read serves all of them.

A computation is any code that calls the model: a forward, or transformers' ``generate``. It runs as a strand, with a
stack of its own (a greenlet), and stops at every module whose weights are large or streamed. The lockstep goes round
through these places in the order of a forward. At each it computes the module for all strands that wait there, under
one lease, each row with the bits that it has alone. All else, like attention, masks, positions, caches and sampling, a
strand computes by itself, as it would alone.

The idea of sharing one scan is from "Cooperative Scans: Dynamic Bandwidth Sharing in a DBMS".
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from typing import Any

import greenlet
from torch import nn

from ..experts.experts import streamed_experts
from .class_forward import own_forward
from .meeting import Arrival, Outcome, Place, Route, compute_beside, compute_joined, compute_one, find_joining

Work = Callable[[], Any]
Ended = Callable[[Any, BaseException | None], None]
Lease = Callable[[], AbstractContextManager[Any]]


class Strand(greenlet.greenlet):
    """One computation. ``ended`` is called at its end, with its result and with the error that ended it, or None."""

    def __init__(self, lockstep: "Lockstep", work: Work, ended: Ended, *, part: bool) -> None:
        """``part``: others that began after it must not overtake it."""
        super().__init__(work)
        self.lockstep, self.ended, self.part = lockstep, ended, part
        self.arrival: Arrival | None = None
        """The call that it waits for."""
        self.paused = False


class Lockstep:
    """The strands of one model, and where they are. For one thread, which calls ``advance``."""

    def __init__(
        self,
        model: nn.Module,
        leased: Mapping[nn.Module, Lease],
        divided: Mapping[nn.Module, Lease],
        *,
        exact: bool,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``leased`` keep the weights of modules in memory for several calls. ``divided`` do so for modules that
        several tokens pass as a whole. ``exact``: rows that are computed together have the bits that each has alone.
        Else torch may sum them in another order. It may be changed between rounds."""
        self._clock, self.exact = clock, exact
        self._strands: dict[Strand, None] = {}  # in the order in which they began
        self._waiting: list[tuple[Strand, Arrival]] | None = None  # None: to be looked up
        self._before: list[tuple[nn.Module, Callable[..., Any] | None]] = []
        self._route = Route()
        self._at: Place | None = None  # None: between rounds
        self._short = self._long = self._round = 0.0  # seconds: of one token, of several, and the last round's of one
        for module in model.modules():
            joining = find_joining(module)
            lease = leased.get(module) or divided.get(module) or nullcontext
            if joining is not None or lease is not nullcontext:
                several = None if (experts := streamed_experts(module)) is None else experts.forward_several
                place = Place(own_forward(module), joining, several, lease, whole=module in divided)
                self._before.append((module, vars(module).get("forward")))
                module.forward = self._stopping(place)

    def __len__(self) -> int:
        return len(self._strands)

    def close(self) -> None:
        """End all strands, and let the model compute as before."""
        for strand in [*self._strands]:
            self.cancel(strand)
        for module, before in self._before:
            if before is None:
                del module.forward
            else:
                module.forward = before
        self._before.clear()

    def start(self, work: Work, ended: Ended) -> Strand:
        """Begin ``work``, up to the first place where it stops."""
        return self._start(work, ended, part=False)

    def _start(self, work: Work, ended: Ended, *, part: bool) -> Strand:
        strand = Strand(self, work, ended, part=part)
        self._strands[strand] = None
        self._go_on(strand, strand.switch)
        return strand

    def cancel(self, strand: Strand) -> None:
        """End ``strand`` where it is. It gives back what it holds. ``ended`` is not called."""
        if strand in self._strands:
            strand.ended = _ignore
            self._go_on(strand, partial(strand.throw, greenlet.GreenletExit))

    def pause(self, strand: Strand, paused: bool) -> None:
        """Leave ``strand`` where it is, or have it go on."""
        strand.paused, self._waiting = paused, None

    def together(self, works: Sequence[Work]) -> list[Any]:
        """Run ``works`` beside each other for the strand that calls it. They stop at the same places, and pass each in
        their order. Returns their results, or raises the first error of one."""
        parent = greenlet.getcurrent()
        assert isinstance(parent, Strand)
        outs: dict[int, Any] = {}
        errors: list[BaseException] = []
        waits = False

        def end(number: int, out: Any, error: BaseException | None) -> None:
            outs[number] = out
            if error is not None:
                errors.append(error)
            if waits and (errors or len(outs) == len(works)):
                self._go_on(parent, parent.switch)

        children: list[Strand] = []
        try:
            for number, work in enumerate(works):
                children.append(self._start(work, partial(end, number), part=True))
                if errors:
                    break
            waits = not errors and len(outs) < len(works)
            if waits:
                _stop_at(None)
                waits = False
        finally:
            for child in children:
                self.cancel(child)
        if errors:
            raise errors[0]
        return [outs[number] for number in range(len(works))]

    @property
    def waits(self) -> bool:
        """Whether a strand waits to be computed."""
        return bool(self._who_waits())

    @property
    def begins(self) -> bool:
        """Whether the next call of ``advance`` begins a round."""
        at = self._order()
        return not any(arrival.place.order > at for _, arrival in self._who_waits())

    def advance(self, share: float) -> bool:
        """Compute the next place where strands wait. Returns False if there is none.

        In a round, calls of several tokens take at most ``share`` times the seconds of the others, and those of one
        place more. They are not held up where nobody else waits.
        """
        waiting = self._who_waits()
        if not waiting:
            return False
        at = self._order()
        if all(call.place.order <= at for _, call in waiting):
            at, self._round, self._short, self._long = -1, self._short, 0.0, 0.0
        if self._long > share * max(self._round, self._short):
            waiting = [(strand, call) for strand, call in waiting if _is_short(strand, call)] or waiting
        place = min(
            (call.place for _, call in waiting if call.place.order > at), key=lambda place: place.order, default=None
        )
        self._at = place
        if place is not None:  # else only those who are held up are ahead: the round is over
            self._compute(place, [(strand, call) for strand, call in waiting if call.place is place])
        return True

    def _order(self) -> int:
        """That of the place where the lockstep is; between rounds that behind all places."""
        return len(self._route) if self._at is None else self._at.order

    def _who_waits(self) -> list[tuple[Strand, Arrival]]:
        if self._waiting is None:
            self._waiting = [
                (strand, strand.arrival) for strand in self._strands if strand.arrival is not None and not strand.paused
            ]
        return self._waiting

    def _compute(self, place: Place, calls: Sequence[tuple[Strand, Arrival]]) -> None:
        joined: list[tuple[Strand, Arrival]] = []
        single: list[tuple[Strand, Arrival]] = []
        for strand, call in calls:
            (joined if call.joinable and not strand.part else single).append((strand, call))
        if len(joined) == 1:
            joined, single = [], [*calls]
        began = self._clock()
        with place.lease() if len(single) + bool(joined) > 1 else nullcontext():
            if joined:
                together = compute_joined(place, [call for _, call in joined], exact=self.exact)
                for (strand, _), outcome in zip(joined, together, strict=True):
                    self._answer(strand, outcome)
                began = self._note(began, short=True)
            beside = compute_beside([call for _, call in single]) if place.several and single else None
            for at, (strand, call) in enumerate(single):
                self._answer(strand, compute_one(call) if beside is None else beside[at])
                began = self._note(began, short=_is_short(strand, call))

    def _note(self, began: float, *, short: bool) -> float:
        """Count the time since ``began``. Returns what time it is."""
        now = self._clock()
        if short:
            self._short += now - began
        else:
            self._long += now - began
        return now

    def _answer(self, strand: Strand, outcome: Outcome) -> None:
        """Let ``strand`` go on with the ``outcome`` of its call. Another one may have cancelled it meanwhile."""
        out, error = outcome
        if strand in self._strands:
            self._go_on(strand, partial(strand.switch, out) if error is None else partial(strand.throw, error))

    def _go_on(self, strand: Strand, switch: Callable[[], Any]) -> None:
        """Let ``strand`` compute until it stops again, or ends."""
        strand.arrival = self._waiting = None
        strand.parent = greenlet.getcurrent()
        error: BaseException | None = None
        found: Any = None
        try:
            found = switch()
        except BaseException as raised:
            error = raised
        self._waiting = None  # whatever the strand has started meanwhile
        if not strand.dead:
            strand.arrival = found
            return
        del self._strands[strand]
        strand.ended(found, error)

    def _stopping(self, place: Place) -> Callable[..., Any]:
        """The forward of the module of ``place``, where strands stop. Those who ask see what it wraps: the module is
        described as it was, and prompts are stored. Their blocks have its bits: only single tokens are joined."""

        @wraps(place.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._call(place, *args, **kwargs)

        return forward

    def _call(self, place: Place, *args: Any, **kwargs: Any) -> Any:
        """The forward of the module of ``place``."""
        arrival, strand = Arrival(place, args, kwargs), greenlet.getcurrent()
        if not isinstance(strand, Strand) or (place.whole and _is_short(strand, arrival)):
            return place.forward(*args, **kwargs)
        self._route.pass_by(place)
        return _stop_at(arrival)


def _is_short(strand: Strand, call: Arrival) -> bool:
    """Whether ``call`` is one of a single token: not as part of a prompt, which stays with the other parts."""
    return call.tokens == 1 and not strand.part


def _stop_at(arrival: Arrival | None) -> Any:
    """Stop the strand that calls it, until the result of ``arrival`` is there, or those that it waits for have
    ended."""
    lockstep = greenlet.getcurrent().parent
    assert lockstep is not None
    return lockstep.switch(arrival)


def _ignore(out: Any, error: BaseException | None) -> None:
    """A strand has ended that was cancelled."""
