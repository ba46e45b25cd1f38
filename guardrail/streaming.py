"""Holding a stream back until it has been judged. No I/O, no clock: `push`, `due`, `release`.

Upstream events wait in one queue, whole and in order. Each part of each choice is a *lane*: its text so far, how far
it was scored, how far it may leave. Text leaves only through `release`, which takes `Cleared` windows, and a
`Cleared` cannot be built from a window that was not scored. A window begins where the last release ended, so that a
span of at most `tail` characters lies whole in the window that ends after it, with none of it on the wire.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from guardrail.conversation import SHORT, PartKind, StreamEvent
from guardrail.decision import Finding
from guardrail.policy import Mode
from guardrail.scoring import Verdict

LaneKey = tuple[int, PartKind, str]
# Takes the choices given up, and those whose reasoning is; gives the event without them, or None if nothing is left.
Strip = Callable[[StreamEvent, Collection[int], Collection[int]], StreamEvent | None]

# Where a sentence ends, in scripts with and without a space after the mark; a line end counts.
_SENTENCE_END = re.compile(r"[.!?…](?=[\s\"')\]*_])|[。！？।؟\n]")  # noqa: RUF001 - the full-width marks are meant


@dataclass(frozen=True, slots=True)
class Schedule:
    """In characters. The first window closes at a sentence end after `first`, later ones grow by `growth` up to
    `most`; without a sentence end a window closes at `slack` times its size. `tail` is never released before the
    part ends. `lag` lets so many characters leave before they are scored; None holds all back until then. What ends a
    choice `waits` until all of it is scored, whatever the lag. `held` caps the bytes waiting in the queue, `parts` how
    many parts a stream may have.
    """

    tail: int = 120
    lag: int | None = None
    waits: bool = True
    first: int = 160
    growth: float = 1.5
    most: int = 640
    slack: float = 1.25
    held: int = 4 << 20
    parts: int = 256


@dataclass(frozen=True, slots=True)
class Window:
    """Text to be scored now: `text[start:]`, with all the part's earlier text before it. `final` ends the part."""

    lane: LaneKey
    text: str
    start: int
    final: bool


@dataclass(frozen=True, slots=True)
class Cleared:
    """A scored window whose text may leave. `waived` are the verdicts with which the operator lets text through; not
    `enforced`, it leaves whatever was found.
    """

    window: Window
    finding: Finding
    waived: Collection[Verdict] = ()
    enforced: bool = True

    def __post_init__(self) -> None:
        if not self.enforced:
            return
        if self.finding.mode is not Mode.DIRECT:
            raise ValueError("a window over its band cannot be cleared")
        if self.finding.verdict is not Verdict.SCORED and self.finding.verdict not in self.waived:
            raise ValueError("a window without a score cannot be cleared")


@dataclass(slots=True)
class _Lane:
    length: int = 0
    scored: int = 0
    cleared: int = 0
    size: int = 0
    ended: bool = False
    closed: bool = False  # its choice has finished
    whole: bool = False  # it leaves whole or not at all
    last: str = ""  # the last piece of an unknown field, which many servers repeat in every event
    _pieces: list[str] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        return self.length - self.scored

    @property
    def text(self) -> str:
        self._pieces[:] = ["".join(self._pieces)]
        return self._pieces[0]

    def add(self, piece: str) -> None:
        self._pieces.append(piece)
        self.length += len(piece)
        self.last = piece


@dataclass(slots=True)
class _Held:
    event: StreamEvent
    # For each lane the event adds to: how much of the lane's text must be cleared before the event may leave.
    needs: dict[LaneKey, int] = field(default_factory=dict)
    # The lanes that end with it; nothing can be put in the place of an answer that has ended on the wire.
    ends: set[LaneKey] = field(default_factory=set)


class Holdback:
    """One stream. `push` what arrives, score what is `due`, `release` with what was cleared."""

    def __init__(self, strip: Strip, schedule: Schedule | None = None) -> None:
        self._strip = strip
        self._schedule = schedule or Schedule()
        self._lanes: dict[LaneKey, _Lane] = {}
        self._queue: deque[_Held] = deque()
        self._gone: set[int] = set()
        self._unreasoned: set[int] = set()
        self._owed: set[int] = set()
        self.held_bytes = 0

    def push(self, event: StreamEvent) -> None:
        """Queues one event."""
        held = _Held(event)
        for piece in event.pieces:
            key = (piece.choice, piece.kind, piece.key)
            if self._is_given_up(key):
                continue
            lane = self._lane(key)
            if piece.kind is PartKind.UNKNOWN and piece.text == lane.last:
                continue
            self._end_others(key)
            lane.ended = lane.closed  # text after its choice's end is scored at once
            lane.add(piece.text)
            lane.whole |= piece.whole or piece.kind is PartKind.TOOL_CALL
            held.needs[key] = lane.length
        for index, part in event.ended:
            for kind in (PartKind.TOOL_CALL, PartKind.REASONING):
                if (index, kind, part) in self._lanes:
                    self._lanes[index, kind, part].ended = True
        self._queue.append(held)
        self.held_bytes += len(event.raw)
        for index in event.finished:
            ended = self._finish(index)
            held.needs |= ended
            held.ends |= ended.keys()

    def close(self) -> None:
        """The upstream has nothing more to say: every part ends here."""
        for index in {key[0] for key in self._lanes}:
            self._finish(index)

    def due(self) -> tuple[Window, ...]:
        """The windows to score now. Unknown fields are scored along with whatever is due, not to hold it up."""
        keys = [key for key, lane in self._lanes.items() if self._is_due(key, lane)]
        if keys:
            keys += [
                k for k, lane in self._lanes.items() if k[1] is PartKind.UNKNOWN and lane.waiting and k not in keys
            ]
        windows = []
        for key in keys:
            lane = self._lanes[key]
            whole = lane.ended or key[1] is PartKind.UNKNOWN
            end = lane.length if whole else self._cut(lane)
            start = max(0, lane.scored - self._schedule.tail)
            if not self._is_short(key, lane):
                windows.append(Window(key, lane.text[:end], start, lane.closed))
        return tuple(windows)

    def release(self, cleared: Iterable[Cleared] = ()) -> list[StreamEvent]:
        """The only way out: the events that hold no text beyond what was cleared, in order."""
        for item in cleared:
            lane = self._lanes.get(item.window.lane)
            if lane is None:
                continue  # given up since
            lane.scored = max(lane.scored, len(item.window.text))
            lane.size = min(int(lane.size * self._schedule.growth), self._schedule.most)
        for key, lane in self._lanes.items():
            # The tail of a part that ended leaves with its last window, not before that is scored.
            whole = (lane.ended or key[1] is PartKind.UNKNOWN) and not lane.waiting
            reach = lane.scored if whole else lane.scored - self._schedule.tail
            if self._schedule.lag is not None:
                reach = max(reach, lane.scored + self._schedule.lag)
            lane.cleared = max(lane.cleared, reach)
        free: list[StreamEvent] = []
        while self._queue and self._is_free(self._queue[0]):
            event = self._queue.popleft().event
            self.held_bytes -= len(event.raw)
            left = self._strip(event, self._gone, self._unreasoned)
            if left is not None:
                free.append(left)
        return free

    def drop(self, index: int) -> str:
        """Gives up a choice: what waits of it is never released, and what is of no choice waits for its replacement.
        Returns the visible text that had left.
        """
        self._gone.add(index)
        self._owed.add(index)
        left = "".join(
            lane.text[: self._left(key)]
            for key, lane in self._lanes.items()
            if key[0] == index and key[1] is PartKind.TEXT
        )
        self._forget({key for key in self._lanes if key[0] == index})
        return left

    def replaced(self, index: int) -> None:
        """What stands in the place of a choice that was given up is on the wire."""
        self._owed.discard(index)

    def drop_reasoning(self, index: int) -> None:
        """Gives up a choice's reasoning; its other parts go on."""
        self._unreasoned.add(index)
        self._forget({key for key in self._lanes if key[0] == index and key[1] is PartKind.REASONING})

    @property
    def gone(self) -> frozenset[int]:
        return frozenset(self._gone)

    @property
    def unreasoned(self) -> frozenset[int]:
        return frozenset(self._unreasoned)

    @property
    def open(self) -> frozenset[int]:
        """The choices that have said something and were neither finished nor given up."""
        return frozenset(key[0] for key, lane in self._lanes.items() if not lane.closed)

    @property
    def overfull(self) -> bool:
        """Whether more waits than may, bytes or parts: then what waits can only be given up."""
        return self.held_bytes > self._schedule.held or len(self._lanes) > self._schedule.parts

    def text(self, index: int) -> str:
        """The visible text of a choice as far as it has come, released or not."""
        return "".join(lane.text for key, lane in self._lanes.items() if key[0] == index and key[1] is PartKind.TEXT)

    # Lanes

    def _lane(self, key: LaneKey) -> _Lane:
        return self._lanes.setdefault(key, _Lane(size=self._schedule.first))

    def _is_given_up(self, key: LaneKey) -> bool:
        return key[0] in self._gone or (key[0] in self._unreasoned and key[1] is PartKind.REASONING)

    def _end_others(self, key: LaneKey) -> None:
        # Reasoning ends when another kind of part begins; otherwise its tail would hold up the whole answer. Text ends
        # only with its choice: it may go on after a call or more reasoning, and a span across the gap is still a span.
        if key[1] in (PartKind.UNKNOWN, PartKind.REASONING):
            return
        for other, lane in self._lanes.items():
            if other[0] == key[0] and other[1] is PartKind.REASONING:
                lane.ended = True

    def _finish(self, index: int) -> dict[LaneKey, int]:
        """Ends all parts of a choice; its finish waits for every one of them."""
        needs = {}
        for key, lane in self._lanes.items():
            if key[0] == index:
                lane.ended = lane.closed = True
                needs[key] = lane.length
        return needs

    def _is_short(self, key: LaneKey, lane: _Lane) -> bool:
        return key[1] is PartKind.UNKNOWN and lane.length <= SHORT

    def _is_due(self, key: LaneKey, lane: _Lane) -> bool:
        if not lane.waiting or self._is_short(key, lane):
            return False
        if lane.ended:
            return True
        return key[1] is not PartKind.TOOL_CALL and lane.waiting >= lane.size and self._cut(lane) > lane.scored

    def _cut(self, lane: _Lane) -> int:
        """Where an open part's window ends: its last sentence end, or all there is once that is long enough."""
        ends = [match.end() for match in _SENTENCE_END.finditer(lane.text, lane.scored)]
        if ends and ends[-1] - lane.scored >= lane.size // 2:
            return ends[-1]
        return lane.length if lane.waiting >= lane.size * self._schedule.slack else lane.scored

    def _is_free(self, held: _Held) -> bool:
        if self._owed and not held.event.choices:  # the usage of all, say, comes after all
            return False
        if self._schedule.waits and any(
            self._lanes[key].waiting and not self._is_short(key, self._lanes[key]) for key in held.ends
        ):
            return False
        return all(self._is_cleared(key, end) for key, end in held.needs.items())

    def _is_cleared(self, key: LaneKey, end: int) -> bool:
        lane = self._lanes.get(key)
        if lane is not None and lane.whole:
            return lane.ended and not lane.waiting
        return lane is None or lane.cleared >= end or self._is_short(key, lane)

    # Dropping

    def _left(self, key: LaneKey) -> int:
        """How much of a lane's text is on the wire: all before what the first waiting event adds."""
        waiting = [held for held in self._queue if key in held.needs]
        if not waiting:
            return self._lanes[key].length
        first = waiting[0]
        added = sum(len(piece.text) for piece in first.event.pieces if (piece.choice, piece.kind, piece.key) == key)
        return first.needs[key] - added

    def _forget(self, keys: set[LaneKey]) -> None:
        for key in keys:
            del self._lanes[key]
        for held in self._queue:
            held.needs = {key: end for key, end in held.needs.items() if key not in keys}
            held.ends -= keys
