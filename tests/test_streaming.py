"""Holdback: nothing leaves unscored, a short span leaves whole or not at all, a clean stream leaves as it came."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.conversation import JSON, PartKind, StreamEvent
from guardrail.decision import Finding
from guardrail.policy import Mode
from guardrail.scoring import Verdict
from guardrail.streaming import Cleared, Holdback, Schedule, Window
from guardrail.wire import chat
from guardrail.wire.sse import parse_frame, write_frame

FINE = Finding(PartKind.TEXT, "", Mode.DIRECT, "unclassified", 0.0)
# Windows of 8 characters that do not grow, 4 held back, 16 without a sentence end.
SMALL = Schedule(tail=4, first=8, growth=1.0, most=8, slack=2.0)


def delta(index: int = 0, finish: str | None = None, **fields: Any) -> JSON:
    return {"index": index, "delta": fields, "finish_reason": finish}


def event(*choices: JSON) -> StreamEvent:
    return chat.read_event(parse_frame(write_frame(json.dumps({"id": "c", "choices": list(choices)}).encode())))


def say(text: str, index: int = 0) -> StreamEvent:
    return event(delta(index, content=text))


def end(index: int = 0, finish: str = "stop") -> StreamEvent:
    return event(delta(index, finish))


def call(arguments: str, number: int = 0, **named: str) -> StreamEvent:
    return event(delta(tool_calls=[{"index": number, "function": {**named, "arguments": arguments}}]))


def think(text: str, **fields: Any) -> StreamEvent:
    return event(delta(reasoning=text, **fields))


def said(events: list[StreamEvent], index: int = 0, kind: PartKind = PartKind.TEXT) -> str:
    return "".join(p.text for e in events for p in e.pieces if p.choice == index and p.kind is kind)


class Driver:
    """Pushes, scores and releases as `guardrail.stream` does; remembers what was scored and checks what leaves."""

    def __init__(self, schedule: Schedule | None = None, flag: Callable[[Window], bool] = lambda window: False) -> None:
        self.hold = Holdback(chat.strip, schedule)
        self.flag = flag
        self.windows: list[Window] = []
        self.out: list[StreamEvent] = []
        self.scored: dict[Any, int] = {}
        self.left: dict[Any, int] = {}

    def feed(self, *events: StreamEvent) -> list[StreamEvent]:
        """What leaves because of these events."""
        before = len(self.out)
        for item in events:
            self.hold.push(item)
            self.settle()
        return self.out[before:]

    def close(self) -> list[StreamEvent]:
        before = len(self.out)
        self.hold.close()
        self.settle()
        return self.out[before:]

    def settle(self) -> None:
        self._write(self.hold.release())
        while windows := self.hold.due():
            cleared = []
            for window in windows:
                self._look(window)
                if not self.flag(window):
                    cleared.append(Cleared(window, FINE))
                elif window.lane[1] is PartKind.REASONING:
                    self.hold.drop_reasoning(window.lane[0])
                else:
                    self.hold.drop(window.lane[0])
            self._write(self.hold.release(cleared))

    def _look(self, window: Window) -> None:
        self.windows.append(window)
        assert window.start <= self.scored.get(window.lane, 0), "a gap between windows"
        self.scored[window.lane] = max(self.scored.get(window.lane, 0), len(window.text))

    def _write(self, events: list[StreamEvent]) -> None:
        self.out += events
        for piece in (piece for item in events for piece in item.pieces):
            lane = (piece.choice, piece.kind, piece.key)
            self.left[lane] = self.left.get(lane, 0) + len(piece.text)
            if piece.kind is not PartKind.UNKNOWN:
                assert self.left[lane] <= self.scored.get(lane, 0), "text left that no window held"


# Playbooks: what comes, the windows due then (start, end, final), the text that leaves.
Step = tuple[StreamEvent, list[tuple[int, int, bool]], str]
PLAYBOOKS: dict[str, list[Step]] = {
    "a window ends where a sentence does": [
        (say("Hi."), [], ""),
        (say(" Ok."), [], ""),
        (say(" So"), [(0, 7, False)], "Hi."),
        (say(" it"), [], ""),
        (end(), [(3, 13, True)], " Ok. So it"),
    ],
    "a sentence end counts once something follows it": [
        (say("abcdefg."), [], ""),
        (say("h"), [], ""),  # it may have been the point of 3.14
        (say(" i. "), [(0, 12, False)], "abcdefg."),
        (end(), [(8, 13, True)], "h i. "),
    ],
    "without a sentence end there is a limit": [
        (say("abcdefgh"), [], ""),
        (say("ijklmno"), [], ""),
        (say("p"), [(0, 16, False)], "abcdefgh"),
        (say("q" * 16), [(12, 32, False)], "ijklmnop"),
        (end(), [], "q" * 16),
    ],
    "code ends at its lines": [
        (say("```\n"), [], ""),
        (say("x = 1\n"), [(0, 10, False)], "```\n"),
        (say("y = 2\n"), [], ""),
        (say("z = 3\n"), [(6, 22, False)], "x = 1\ny = 2\n"),
        (say("```"), [], ""),
        (end(), [(18, 25, True)], "z = 3\n```"),
    ],
    "Chinese needs no space after its full stop": [
        (say("你好。"), [], ""),
        (say("今天天气很好。"), [(0, 10, False)], "你好。"),
        (end(), [], "今天天气很好。"),
    ],
    "a short answer is scored at its end": [(say("Hi"), [], ""), (end(), [(0, 2, True)], "Hi")],
    "an event leaves whole or not at all": [
        (say("One. Two. Three. Four"), [(0, 16, False)], ""),
        (end(), [(12, 21, True)], "One. Two. Three. Four"),
    ],
    "text after the finish is scored at once": [
        (say("Hi"), [], ""),
        (end(), [(0, 2, True)], "Hi"),
        (say("!"), [(0, 3, True)], "!"),
    ],
    "an answer of nothing": [(event(delta(role="assistant", content="")), [], ""), (end(), [], "")],
}


@pytest.mark.parametrize("steps", PLAYBOOKS.values(), ids=PLAYBOOKS)
def test_playbook(steps: list[Step]) -> None:
    driver = Driver(SMALL)
    for item, windows, text in steps:
        seen = len(driver.windows)
        left = said(driver.feed(item))
        assert [(w.start, len(w.text), w.final) for w in driver.windows[seen:]] == windows
        assert left == text
    assert driver.out == [item for item, _, _ in steps]


def test_the_tail_waits_for_the_last_window() -> None:
    driver = Driver(SMALL, flag=lambda window: "bad" in window.text[window.start :])
    assert said(driver.feed(say("Good day"), say("s to yo"), say("b"))) == "Good day"  # scored up to the "b"
    driver.feed(say("ad"), end())
    assert said(driver.out) == "Good day"
    assert driver.hold.gone == {0}


def test_windows_grow() -> None:
    driver = Driver(Schedule(tail=10, first=20, growth=2.0, most=80, slack=1.0))
    driver.feed(*(say("x") for _ in range(300)))
    assert [len(window.text) for window in driver.windows] == [20, 60, 140, 220, 300]
    assert [window.start for window in driver.windows] == [0, 10, 50, 130, 210]


def test_a_tool_call_is_held_until_it_is_whole() -> None:
    driver = Driver(SMALL)
    assert driver.feed(say("Let me look. ")) == []
    assert [len(window.text) for window in driver.windows] == [12]
    assert (
        driver.feed(call('{"in":', name="weather"), call('"' + "Oslo, " * 20), call('"}'), call("{}", 1, name="f"))
        == []
    )
    assert len(driver.windows) == 1
    assert len(driver.feed(end(finish="tool_calls"))) == 6
    calls = [(w.text, w.start, w.final) for w in driver.windows if w.lane[1] is PartKind.TOOL_CALL]
    assert calls == [("weather\n" + '{"in":"' + "Oslo, " * 20 + '"}', 0, True), ("f\n{}", 0, True)]


def test_reasoning_ends_where_the_answer_begins() -> None:
    driver = Driver(SMALL)
    assert driver.feed(think("hm")) == []
    assert said(driver.feed(say("Yes")), kind=PartKind.REASONING) == "hm"
    assert [(w.lane[1], w.text, w.final) for w in driver.windows] == [(PartKind.REASONING, "hm", False)]
    assert said(driver.feed(end())) == "Yes"


def test_reasoning_sent_twice_an_event_is_no_end() -> None:
    # Some servers say each thought in `reasoning` and in `reasoning_details`.
    both = [think("x", reasoning_details=[{"type": "reasoning.text", "text": "x"}]) for _ in range(1000)]
    driver = Driver()
    assert [*driver.feed(*both), *driver.feed(end())] == [*both, end()]
    assert sum(len(window.text) - window.start for window in driver.windows) < 2 * 3000


def test_choices_keep_their_order() -> None:
    driver = Driver(SMALL)
    events = [say("a", 0), say("b" * 20, 1), end(0), say("c. ", 1), end(1)]
    assert driver.feed(*events[:3]) == [events[0]]  # the second choice's tail stands before the first one's finish
    assert driver.feed(*events[3:]) == events[1:]
    assert said(driver.out, 1) == "b" * 20 + "c. "


def test_unknown_fields() -> None:
    driver = Driver(SMALL)
    long, short = "v" * 40, "s" * 32
    events = [event(delta(content="abcd", vendor=long, tag=short)) for _ in range(8)]
    driver.feed(*events, end())
    assert driver.out == [*events, end()]
    looked = [window.text for window in driver.windows if window.lane[1] is PartKind.UNKNOWN]
    assert looked == [long]  # once, although each event says it; never what stays short


def test_a_call_that_ended_leaves_before_its_choice_does() -> None:
    driver = Driver(SMALL)
    first, rest = call('{"a": ', name="f"), replace(call("1}"), ended=((0, "0"),))
    assert driver.feed(first) == []
    assert driver.feed(rest) == [first, rest]
    more = call(" and more")
    assert driver.feed(more) == []  # it had not ended after all
    assert driver.feed(end()) == [more, end()]
    assert [window.text for window in driver.windows] == ['f\n{"a": 1}', 'f\n{"a": 1} and more']


def test_a_dropped_choice_is_cut_out() -> None:
    driver = Driver(SMALL)
    driver.feed(say("Good day. ", 0), say("Hello. ", 0), event(delta(0, content="x"), delta(1, content="y")))
    assert said(driver.out, 0) == "Good day. "
    assert driver.hold.text(0) == "Good day. Hello. x"
    assert driver.hold.drop(0) == "Good day. "
    driver.hold.replaced(0)
    assert (driver.hold.gone, driver.hold.open) == ({0}, {1})
    driver.windows.clear()
    driver.feed(say("more", 0), end(0), say("z", 1), end(1))
    assert (said(driver.out, 0), said(driver.out, 1)) == ("Good day. ", "yz")
    assert {window.lane[0] for window in driver.windows} == {1}  # nobody scores what is given up
    assert all(0 not in item.choices for item in driver.out[1:])
    assert driver.hold.held_bytes == 0


def test_dropped_reasoning_leaves_the_answer() -> None:
    driver = Driver(SMALL, flag=lambda window: "bad" in window.text)
    driver.feed(think("good. "), think("bad. "), think("more", content="Yes"), think("late"), end())
    assert said(driver.out, kind=PartKind.REASONING) == ""
    assert said(driver.out) == "Yes"
    assert (driver.hold.unreasoned, driver.hold.gone) == ({0}, frozenset())
    assert driver.out[-1].finished == (0,)


def test_over_the_cap_what_waits_can_be_given_up() -> None:
    driver = Driver(Schedule(held=500))
    driver.feed(call("x" * 100, name="f"), say("hi", 1))
    assert not driver.hold.overfull
    driver.feed(call("x" * 400))
    assert driver.hold.overfull
    for index in driver.hold.open:
        driver.hold.drop(index)
    assert driver.hold.release() == []
    assert not driver.hold.overfull


def test_a_hang_up_ends_every_part() -> None:
    driver = Driver(SMALL)
    events = [say("a", 0), say("b", 1), call("{}", name="f")]
    assert driver.feed(*events) == []
    assert driver.close() == events
    assert all(window.final for window in driver.windows)


WINDOW = Window((0, PartKind.TEXT, ""), "Hi", 0, True)
BOTH = (Verdict.ERROR, Verdict.UNREADABLE)
# mode, verdict, waived -> whether the window may leave
CLEARED: list[tuple[Mode, Verdict, tuple[Verdict, ...], bool]] = [
    (Mode.DIRECT, Verdict.SCORED, (), True),
    (Mode.DIRECT, Verdict.SCORED, BOTH, True),
    # flagged: no failure mode lets it through
    (Mode.SAFE_COMPLETION, Verdict.SCORED, (), False),
    (Mode.REFUSE, Verdict.SCORED, BOTH, False),
    # no score, or no reading: only the operator does, each on its own
    (Mode.DIRECT, Verdict.ERROR, (), False),
    (Mode.DIRECT, Verdict.UNREADABLE, (), False),
    (Mode.DIRECT, Verdict.ERROR, (Verdict.UNREADABLE,), False),
    (Mode.DIRECT, Verdict.UNREADABLE, (Verdict.ERROR,), False),
    (Mode.REFUSE, Verdict.ERROR, BOTH, False),
    (Mode.SAFE_COMPLETION, Verdict.UNREADABLE, BOTH, False),
    (Mode.DIRECT, Verdict.ERROR, (Verdict.ERROR,), True),
    (Mode.DIRECT, Verdict.UNREADABLE, (Verdict.UNREADABLE,), True),
]


@pytest.mark.parametrize(("mode", "verdict", "waived", "leaves"), CLEARED)
def test_only_a_scored_window_is_cleared(
    mode: Mode, verdict: Verdict, waived: tuple[Verdict, ...], leaves: bool
) -> None:
    finding = Finding(PartKind.TEXT, "", mode, None, None, verdict=verdict)
    if leaves:
        assert Cleared(WINDOW, finding, waived).window is WINDOW
    else:
        with pytest.raises(ValueError, match="cannot be cleared"):
            Cleared(WINDOW, finding, waived)


# Any cut

more = settings(max_examples=5 * settings.default.max_examples)
BITS = st.sampled_from(["a", "ab ", "Well. ", "! ", "\n", "你好。", "no end " * 8, "x" * 40])
WORDS = st.lists(BITS, max_size=40).map("".join)
SIZES = st.one_of(st.integers(1, 50).map(lambda size: [size]), st.lists(st.integers(1, 50), min_size=1, max_size=9))
SCHEDULES = st.builds(
    Schedule,
    tail=st.sampled_from([1, 5, 20, 120]),
    first=st.sampled_from([1, 10, 160]),
    growth=st.sampled_from([1.0, 1.5]),
    slack=st.sampled_from([1.0, 1.25, 2.0]),
)
# What may come between two pieces of the text.
NOISE = st.sampled_from(
    [
        None,
        None,
        think("hm. "),
        call("{", name="f"),
        say("other. ", 1),
        event(delta(vendor="v" * 40)),
        event(delta(refusal="no. ")),
        StreamEvent(b": ping\n\n"),
    ]
)


def cut(text: str, sizes: list[int]) -> Iterator[str]:
    """The text in chunks of these sizes, over and over."""
    at = turn = 0
    while at < len(text):
        yield text[at : at + sizes[turn % len(sizes)]]
        at += sizes[turn % len(sizes)]
        turn += 1


def stream(text: str, sizes: list[int], noise: list[StreamEvent | None], kind: PartKind) -> list[StreamEvent]:
    piece = think if kind is PartKind.REASONING else say
    between = [[noise[at % len(noise)]] if noise else [] for at in range(len(text))]
    chunks = list(cut(text, sizes))
    mixed = [item for at, part in enumerate(chunks) for item in (piece(part), *between[at]) if item is not None]
    return [*mixed, end(0), end(1)]


@given(WORDS, SIZES, st.lists(NOISE, max_size=6), SCHEDULES, st.sampled_from([PartKind.TEXT, PartKind.REASONING]))
def test_a_clean_stream_leaves_as_it_came(
    text: str, sizes: list[int], noise: list[StreamEvent | None], schedule: Schedule, kind: PartKind
) -> None:
    events = stream(text, sizes, noise, kind)
    driver = Driver(schedule)
    driver.feed(*events)
    assert driver.out == events
    assert driver.hold.held_bytes == 0


@more
@given(st.data(), WORDS, WORDS, SIZES, st.lists(NOISE, max_size=6), SCHEDULES)
def test_no_character_of_a_short_span_leaves(
    data: st.DataObject, before: str, after: str, sizes: list[int], noise: list[StreamEvent | None], schedule: Schedule
) -> None:
    length = data.draw(st.one_of(st.integers(1, schedule.tail), st.just(schedule.tail)), "length")
    span = "X" * length
    driver = Driver(schedule, flag=lambda window: span in window.text[window.start :])
    driver.feed(*stream(before + span + after, sizes, noise, PartKind.TEXT))
    assert driver.hold.gone == {0}
    assert "X" not in said(driver.out)
    assert 0 not in {index for item in driver.out for index in item.finished}


@more
@given(st.data(), WORDS, WORDS, SIZES, SCHEDULES)
def test_nor_of_one_in_reasoning(
    data: st.DataObject, before: str, after: str, sizes: list[int], schedule: Schedule
) -> None:
    span = "X" * data.draw(st.integers(1, schedule.tail), "length")
    driver = Driver(schedule, flag=lambda window: span in window.text[window.start :])
    thoughts = stream(before + span + after, sizes, [], PartKind.REASONING)[:-2]
    driver.feed(*thoughts, say("Answer."), end(0))
    assert "X" not in said(driver.out, kind=PartKind.REASONING)
    assert said(driver.out) == "Answer."


@pytest.mark.parametrize("length", [1000, 20_000])
@pytest.mark.parametrize("size", [1, 7, 50])
@pytest.mark.parametrize("words", ["x", "ab. ", "你好。", "word " * 30 + "end. "])
def test_the_text_scored_is_linear(length: int, size: int, words: str) -> None:
    text = (words * (length // len(words) + 1))[:length]
    driver = Driver()
    driver.feed(*(say(part) for part in cut(text, [size])), end())
    assert sum(len(window.text) - window.start for window in driver.windows) <= 3 * length + 1000
