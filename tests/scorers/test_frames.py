"""What is written is what is read, to the last bit; anything else is refused with words that hold nothing of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.scorers.frames import HEAD, MAX_FRAME, FrameError, Kind, read_body, read_head, write_frame
from guardrail.scoring import Passage, Score, Span, Vector, Verdict


def through(value: Any, kind: Any) -> Any:
    raw = write_frame(Kind.RESULT, 7, value)
    head = read_head(raw[: HEAD.size])
    assert (head.kind, head.id, HEAD.size + head.size) == (Kind.RESULT, 7, len(raw))
    return read_body(head, raw[HEAD.size :], kind)


unit = st.floats(0, 1)
texts = st.text(st.characters(exclude_categories=()), max_size=20)  # lone surrogates too
scores = st.builds(
    Score,
    unit,
    st.lists(st.builds(Span, st.integers(0, 99), st.integers(0, 99), unit), max_size=3).map(tuple),
    st.sampled_from(Verdict),
    st.none() | st.lists(st.floats(width=32, allow_nan=False), max_size=4).map(lambda row: np.array(row, np.float32)),
    st.from_regex(r"[a-z_]{0,32}", fullmatch=True),
    st.none() | unit,
    st.dictionaries(st.sampled_from(["hate", "sexual"]), unit),
)


@given(st.lists(scores, max_size=3))
def test_scores_come_through(given: list[Score]) -> None:
    read = through(given, Sequence[Score])
    assert read == given
    for one, other in zip(read, given, strict=True):
        if other.embedding is None:
            assert one.embedding is None
        else:
            assert one.embedding.dtype == np.float32
            assert one.embedding.tobytes() == other.embedding.tobytes()
        assert {type(getattr(one, item.name)) for item in fields(one)} == {
            type(getattr(other, item.name)) for item in fields(other)
        }


@given(st.lists(st.builds(Passage, texts, texts, st.integers(0, 9), texts), max_size=3))
def test_passages_come_through_with_every_character_in_its_place(given: list[Passage]) -> None:
    assert through(given, Sequence[Passage]) == given


def test_two_halves_of_a_character_stay_two() -> None:
    assert through(["\ud83d", "\ude00", "\ud83d" + "\ude00"], Sequence[str]) == ["\ud83d", "\ude00", "\ud83d\ude00"]


@pytest.mark.parametrize("shape", [(0, 4), (3, 4), (1, 1)])
def test_vectors_come_through(shape: tuple[int, int]) -> None:
    vectors = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    read = through(vectors, Vector)
    assert read.shape == shape
    assert np.array_equal(read, vectors)


# What is no frame

PASSAGE = {"prompt": "", "text": "", "start": 0, "flow": ""}
BROKEN: list[tuple[Any, Any]] = [
    (Sequence[Passage], {}),
    (Sequence[Passage], "a string is a sequence too"),
    (Sequence[Passage], [{**PASSAGE, "start": "0"}]),
    (Sequence[Passage], [{**PASSAGE, "start": True}]),
    (Sequence[Passage], [{"prompt": ""}]),
    (Sequence[Passage], [None]),
    (Sequence[str], [1]),
    (Vector, [0, 1 << 60]),
    (Vector, [0, -1]),
    (Vector, [-4, 1]),
    (Vector, []),
    (Vector, None),
]


@pytest.mark.parametrize(("kind", "plain"), BROKEN)
def test_what_is_of_another_type_is_refused(kind: Any, plain: Any) -> None:
    body = json.dumps(plain).encode()
    head = read_head(HEAD.pack(Kind.SCORE, 1, len(body), 8))
    with pytest.raises(FrameError):
        read_body(head, body + bytes(8), kind)


@pytest.mark.parametrize("value", [1.5, -0.5, float("nan")])
def test_a_score_that_cannot_be_is_refused_where_it_is_read(value: float) -> None:
    score = {"value": value, "spans": [], "verdict": "scored", "embedding": None, "note": "", "refusal": None}
    body = json.dumps([{**score, "contents": {}}]).encode()
    with pytest.raises(FrameError):
        read_body(read_head(HEAD.pack(Kind.RESULT, 1, len(body), 0)), body, Sequence[Score])


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'"secret'])
def test_what_is_no_json_is_refused_without_quoting_it(body: bytes) -> None:
    with pytest.raises(FrameError) as caught:
        read_body(read_head(HEAD.pack(Kind.SCORE, 1, len(body), 0)), body, Sequence[str])
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_what_is_too_large_is_refused_on_both_sides() -> None:
    with pytest.raises(FrameError, match="over the limit"):
        write_frame(Kind.SCORE, 1, ["x" * MAX_FRAME])
    with pytest.raises(FrameError, match="over the limit"):
        read_head(HEAD.pack(Kind.SCORE, 1, MAX_FRAME, 1))
    with pytest.raises(FrameError, match="no known kind"):
        read_head(HEAD.pack(77, 1, 0, 0))


@pytest.mark.parametrize("value", [object(), float("inf"), {"x": float("nan")}])
def test_what_cannot_be_written_is_refused(value: Any) -> None:
    with pytest.raises(FrameError):
        write_frame(Kind.RESULT, 1, value)
