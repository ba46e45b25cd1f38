"""Windows cover every unscored token, keep their context, and sentences lie where a reader would see them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.safeguard.windows import Tokens, Window, clip_prompt, cut_windows, sentences


def numbered(count: int) -> Tokens:
    """`count` tokens of three characters with a space after each."""
    return Tokens(range(count), [(4 * i, 4 * i + 3) for i in range(count)])


def test_a_prompt_keeps_its_head_and_its_tail() -> None:
    assert clip_prompt(range(5)) == (0, 1, 2, 3, 4)
    assert clip_prompt(range(10), limit=5) == (0, 1, 7, 8, 9)
    assert len(clip_prompt(range(1000))) == 96


@pytest.mark.parametrize(
    ("count", "start", "windows"),
    [
        # nothing to score
        (0, 0, []),
        (10, 39, []),
        # the first window fills the whole segment, for there is no context
        (10, 0, [Window(0, 0, 10)]),
        (256, 0, [Window(0, 0, 256)]),
        # a longer answer goes on with 128 tokens of context
        (257, 0, [Window(0, 0, 256), Window(128, 256, 257)]),
        (600, 0, [Window(0, 0, 256), Window(128, 256, 384), Window(256, 384, 512), Window(384, 512, 600)]),
        # only what was not scored before is scored, in the light of what was
        (300, 4 * 290, [Window(162, 290, 290 + 10)]),
        # a start inside a token scores that token again
        (10, 13, [Window(0, 3, 10)]),
    ],
)
def test_where_windows_lie(count: int, start: int, windows: list[Window]) -> None:
    assert cut_windows(numbered(count), start) == windows


@given(st.integers(0, 2000), st.integers(0, 9000))
def test_every_unscored_token_is_in_a_window_once_and_no_window_is_too_long(count: int, start: int) -> None:
    tokens = numbered(count)
    windows = cut_windows(tokens, start)
    fresh = [i for w in windows for i in range(w.fresh, w.high)]
    assert fresh == [i for i, (_, end) in enumerate(tokens.offsets) if end > start]
    assert all(w.high - w.low <= 256 and 0 <= w.low <= w.fresh < w.high for w in windows)
    assert all(w.fresh - w.low == min(128, w.fresh) for w in windows)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("  \n ", []),
        ("One. Two!  Three", ["One.", "Two!", "Three"]),
        ('He said "no." Then left.', ['He said "no."', "Then left."]),
        ("It costs 3.50 today.", ["It costs 3.50 today."]),
        # list items are sentences of their own, their numbers are not
        ("1. Mix it.\n2. Bake it.", ["1. Mix it.", "2. Bake it."]),
        ("- first\n- second", ["- first", "- second"]),
        # code lines go in groups, up to a blank line
        ("Run:\n```\na = 1\nb = 2\n\nc = 3\n```\nDone.", ["Run:", "a = 1\nb = 2", "c = 3", "Done."]),
        ("Run:\n    a = 1\n    b = 2\nDone.", ["Run:", "a = 1\n    b = 2", "Done."]),
        ("```\n" + "x\n" * 7 + "```", ["\n".join("x" * 6), "x"]),
        ("```\nnever closed", ["never closed"]),
    ],
)
def test_sentences(text: str, parts: list[str]) -> None:
    assert [text[low:high] for low, high in sentences(text)] == parts


@given(st.text(alphabet="ab .!?\n`-1\t", max_size=200))
def test_sentences_are_in_order_apart_and_miss_no_word(text: str) -> None:
    found = sentences(text)
    assert all(low < high for low, high in found)
    assert all(first[1] <= second[0] for first, second in pairwise(found))
    if "```" not in text:
        outside = [i for i in range(len(text)) if not any(low <= i < high for low, high in found)]
        assert not "".join(text[i] for i in outside).strip()
