"""Any stream of any format, cut anywhere, through reader, Holdback and writer: a clean one leaves as it came, nothing
leaves unscored, a short span leaves whole or not at all, and of a call nothing leaves in part.

A stream is drawn from a seed, so that thousands are quick and any can be seen again; `scripts/soak` runs the same by
the million.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.answers import PATHS, draw, stream
from tests.cuts import Driver, Manner, cut, prove

paths = pytest.mark.parametrize("path", PATHS)
few = settings(max_examples=settings.default.max_examples // 2)
SEEDS = st.integers(0, 2**40)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def driver() -> Driver:
    return Driver.make()


@paths
@few
@given(seed=SEEDS)
def test_a_clean_stream_is_the_same_stream(path: str, loop: asyncio.Runner, driver: Driver, seed: int) -> None:
    loop.run(prove(driver, Random(seed), path, planted=False))


@paths
@few
@given(seed=SEEDS)
def test_no_character_of_a_span_leaves(path: str, loop: asyncio.Runner, driver: Driver, seed: int) -> None:
    loop.run(prove(driver, Random(seed), path, "hold", planted=True))


@paths
@few
@given(seed=SEEDS)
def test_a_lag_lets_no_more_out_than_it_says(path: str, loop: asyncio.Runner, driver: Driver, seed: int) -> None:
    loop.run(prove(driver, Random(seed), path, "lag", planted=True))


@paths
@few
@given(seed=SEEDS)
def test_after_changes_nothing(path: str, loop: asyncio.Runner, driver: Driver, seed: int) -> None:
    loop.run(prove(driver, Random(seed), path, "after", planted=True))


@paths
@few
@given(seed=SEEDS)
def test_where_it_is_cut_makes_no_difference(path: str, loop: asyncio.Runner, driver: Driver, seed: int) -> None:
    random = Random(seed)
    manner = Manner(tail=20, value=random.choice((0.7, 0.95)))
    answer = draw(random, path, manner.tail, planted=True)
    frames = stream(answer, random)
    outs = [loop.run(driver.run(answer, chunks, manner)).out for chunks in (frames, cut(b"".join(frames), random))]
    assert outs[0] == outs[1]
