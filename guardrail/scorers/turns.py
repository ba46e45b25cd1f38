"""Whose turn it is, and who goes along: the order of a queue that several flows share.

It is decided twice. Between flows (tenants) by start-time fair queueing (Goyal, Vin and Cheng, 1996): the flow that was
served least has the turn, counted in sizes, and one that was away is owed nothing for it. Within a flow by a clock: a
submission's first item has the time it came at as its turn, each further one the time after. The clock goes on by one
while each of those who wait has an item served, so a long submission shares the flow with those who come later; and by
a `SHARERS`-th with every item at least, so that however many come later, they are behind it before long.

With the item whose turn it is go those nearest to it in size, from all flows, under a budget of padded cost (padding
makes every item as dear as the largest). Each flow is charged for its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, TypeVar

from guardrail.errors import Overloaded

Item = TypeVar("Item")

SHARERS = 8
"""This many submissions of a flow share it evenly; with more at a time, those who came first are served first."""


@dataclass(frozen=True, slots=True, eq=False)
class _Place(Generic[Item]):
    item: Item
    size: int
    turn: float
    submission: object


@dataclass(slots=True)
class _Flow(Generic[Item]):
    served: int  # in sizes; what it was away for counts as served
    clock: float = 0.0
    waiting: list[_Place[Item]] = field(default_factory=list)  # by turn, and of equal turns who came first


class Turns(Generic[Item]):
    """`budget` bounds the largest size in a batch times its length; `capacity` bounds how many items may wait.

    A flow may have no more of them than places are free beside it, half of all at most: there is room for one more
    flow, always.
    """

    def __init__(self, budget: int, capacity: int) -> None:
        self._budget = budget
        self._capacity = capacity
        self._flows: dict[str, _Flow[Item]] = {}
        self._served = 0  # by the flow that had the last turn; none that waits was served less

    def __len__(self) -> int:
        return sum(len(flow.waiting) for flow in self._flows.values())

    def add(self, items: Sequence[Item], sizes: Sequence[int], name: str) -> None:
        """One submission of the flow `name`, all of it. Raises `Overloaded` if there is no room."""
        flow = self._flows.get(name) or _Flow(self._served)
        if 2 * len(items) + len(flow.waiting) + len(self) > self._capacity:
            raise Overloaded("too many texts are waiting to be scored")
        if not flow.waiting:
            flow.served = max(flow.served, self._served)
        submission = object()
        flow.waiting += [
            _Place(item, size, flow.clock + at, submission)
            for at, (item, size) in enumerate(zip(items, sizes, strict=True))
        ]
        flow.waiting.sort(key=attrgetter("turn"))  # two sorted runs: one merge
        self._flows[name] = flow

    def take(self) -> list[Item]:
        """The next batch, out of the queue; empty if nothing waits."""
        self._forget()
        flows = sorted((flow for flow in self._flows.values() if flow.waiting), key=attrgetter("served"))
        if not flows:
            return []
        self._served = flows[0].served
        batch = self._fill([place for flow in flows for place in flow.waiting])
        taken = set(map(id, batch))
        for flow in flows:
            sharers = len({id(place.submission) for place in flow.waiting})
            sizes = [place.size for place in flow.waiting if id(place) in taken]
            flow.waiting = [place for place in flow.waiting if id(place) not in taken]
            flow.clock += len(sizes) / min(sharers, SHARERS)
            flow.served += sum(sizes)
        return [place.item for place in batch]

    def drop(self, gone: Callable[[Item], bool]) -> None:
        """Take out what is gone."""
        for flow in self._flows.values():
            flow.waiting = [place for place in flow.waiting if not gone(place.item)]

    def clear(self) -> list[Item]:
        """All that waits, out of the queue."""
        left = [place.item for flow in self._flows.values() for place in flow.waiting]
        self._flows.clear()
        return left

    def _fill(self, waiting: Sequence[_Place[Item]]) -> list[_Place[Item]]:
        """The first and its nearest in size, within the budget."""
        batch: list[_Place[Item]] = []
        largest = 0
        for place in sorted(waiting, key=lambda place: abs(place.size - waiting[0].size)):  # stable: then by turn
            largest = max(largest, place.size)
            if batch and largest * (len(batch) + 1) > self._budget:
                break
            batch.append(place)
        return batch

    def _forget(self) -> None:
        """Drop the flows that nothing needs to be known of: away, and with no more served than the next one has."""
        idle = len(self) == 0
        for name, flow in list(self._flows.items()):
            if idle or (not flow.waiting and flow.served <= self._served):
                del self._flows[name]
