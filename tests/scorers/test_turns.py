"""The order of a shared queue, without threads: what is added, and what each turn takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import Overloaded
from guardrail.scorers.turns import SHARERS, Turns


def until_done(length: int, small: int, flow: str) -> int:
    """How many items are served until all of a long submission are, while `small` of one item come to `flow` each turn.

    The long one is of the flow `long`.
    """
    turns: Turns[str] = Turns(budget=1, capacity=1 << 20)
    turns.add(["long"] * length, [1] * length, "long")
    served: list[str] = []
    while served.count("long") < length:
        for _ in range(small):
            turns.add(["small"], [1], flow)
        served += turns.take()
        assert len(served) < 4000, "starved"
    return len(served)


# A long submission beside an endless stream of small ones.


@pytest.mark.parametrize("small", [1, 2, 5])
def test_flows_share_by_halves_however_many_come_in_one(small: int) -> None:
    assert until_done(200, small, "other") <= 2 * 200


def test_within_a_flow_a_long_submission_keeps_its_share_where_more_come_than_can_be_served() -> None:
    assert until_done(200, 1, "long") <= (SHARERS + 1) * 200


@pytest.mark.parametrize("small", [2, 5])
def test_within_a_flow_those_who_come_late_enough_are_behind_it(small: int) -> None:
    # After SHARERS * n items the clock has passed the n-th of the long one: those who came until then may be before it.
    assert until_done(50, small, "long") <= (small * SHARERS + 1) * 50


# Shares


def test_flows_share_by_what_their_items_cost() -> None:
    turns: Turns[str] = Turns(budget=1, capacity=1 << 20)
    turns.add(["dear"] * 100, [6] * 100, "dear")
    turns.add(["cheap"] * 1000, [2] * 1000, "cheap")
    served = [item for _ in range(200) for item in turns.take()]
    assert abs(6 * served.count("dear") - 2 * served.count("cheap")) <= 6


def test_a_flow_that_was_away_is_owed_nothing() -> None:
    turns: Turns[str] = Turns(budget=1, capacity=1 << 20)
    turns.add(["back"], [1], "back")
    turns.add(["here"] * 300, [1] * 300, "here")
    for _ in range(100):
        turns.take()
    turns.add(["back"] * 200, [1] * 200, "back")
    served = [item for _ in range(100) for item in turns.take()]
    assert abs(served.count("back") - 50) <= 1


def test_nor_is_one_that_was_away_for_a_moment() -> None:
    turns: Turns[str] = Turns(budget=1, capacity=1 << 20)
    turns.add(["back"], [1], "back")
    turns.add(["here"] * 9, [10] * 9, "here")
    assert [turns.take() for _ in range(3)] == [["back"], ["here"], ["here"]]
    turns.add(["back"] * 50, [1] * 50, "back")
    served = [item for _ in range(20) for item in turns.take()]
    assert served.index("here") <= 11  # ten of its size, and a tie


def test_a_flow_gains_nothing_by_many_submissions() -> None:
    turns: Turns[str] = Turns(budget=1, capacity=1 << 20)
    turns.add(["one"] * 100, [1] * 100, "one")
    for _ in range(100):
        turns.add(["many"], [1], "many")
    served = [item for _ in range(100) for item in turns.take()]
    assert served.count("one") == 50


def test_a_batch_is_filled_from_all_flows_and_each_is_charged_for_its_own() -> None:
    turns: Turns[str] = Turns(budget=40, capacity=1 << 20)
    turns.add(["a"] * 5, [10] * 5, "a")
    turns.add(["b"], [10], "b")
    turns.add(["c"] * 2, [9, 10], "c")
    assert turns.take() == ["a"] * 4
    assert turns.take() == ["b", "c", "a", "c"]
    assert turns.take() == []


# Room


def test_no_flow_fills_the_queue_alone() -> None:
    turns: Turns[int] = Turns(budget=100, capacity=16)
    for flow, fits in (("loud", 8), ("quiet", 4), ("third", 2), ("fourth", 1)):
        with pytest.raises(Overloaded):
            turns.add(range(fits + 1), range(fits + 1), flow)
        turns.add(range(fits), range(fits), flow)
        with pytest.raises(Overloaded):
            turns.add([0], [0], flow)
    turns.drop(lambda item: item > 3)
    assert len(turns) == 4 + 4 + 2 + 1
    turns.add([5], [5], "third")


@given(
    st.lists(
        st.one_of(st.none(), st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 300), min_size=1, max_size=6))),
        max_size=40,
    )
)
def test_all_that_is_added_is_taken_once_within_the_budget(steps: list[tuple[str, list[int]] | None]) -> None:
    turns: Turns[int] = Turns(budget=256, capacity=1000)
    added, taken = [], []

    def take() -> None:
        batch = turns.take()
        assert bool(batch) == (len(added) > len(taken))
        assert len(batch) <= 1 or max(batch) * len(batch) <= 256
        taken.extend(batch)

    for step in steps:
        if step is None:
            take()
        else:
            flow, sizes = step
            turns.add(sizes, sizes, flow)
            added += sizes
    while len(taken) < len(added):
        take()
    take()
    assert sorted(taken) == sorted(added)
