"""A queue in front of a slow function: callers wait without blocking their event loop, work goes out in batches.

One worker thread runs the function. It takes the item whose turn is next, and fills the batch with those nearest to it
in size, under a budget of padded cost (padding makes every item as dear as the largest). Turns are start-time fair
queueing, each submission a flow: its first item has the turn being served, each further one the turn after, so that a
long submission shares the worker with those who come later. Callers who left are skipped, a failing batch fails its
own callers, a full queue says so at once. The futures belong to no event loop until they are awaited, so several loops
may use one queue, at a time or one after another.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, TypeVar

from guardrail.errors import Overloaded, ScorerError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    size: int
    turn: int
    future: Future[Result]


class BatchQueue(Generic[Item, Result]):
    """`run` is called in the worker thread with items of like size, and gives one result for each, in order.

    `budget` bounds the largest size in a batch times its length; `capacity` bounds how many items may wait.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result]],
        size: Callable[[Item], int],
        *,
        budget: int,
        capacity: int,
    ) -> None:
        self._run = run
        self._size = size
        self._budget = budget
        self._capacity = capacity
        self._waiting: list[_Waiting[Item, Result]] = []  # by turn; who came first, where turns are equal
        self._turn = 0  # of the item the last batch was built around; none that waits has a smaller one
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None
        self._closed = False

    async def submit(self, items: Sequence[Item]) -> list[Result]:
        """The result of each item. Raises `Overloaded` if they do not all fit, `ScorerError` if their batch failed.

        A caller that is cancelled leaves the queue; what was not begun for it never runs.
        """
        if not items:
            return []
        futures = self._enqueue(items)
        try:
            return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))
        finally:
            for future in futures:
                future.cancel()  # no effect on those that are done

    def close(self) -> None:
        """Fail what still waits, let the running batch end, and stop the worker. Safe to call twice."""
        with self._changed:
            self._closed = True
            left, self._waiting = self._waiting, []
            self._changed.notify_all()
        for entry in left:
            if entry.future.set_running_or_notify_cancel():
                entry.future.set_exception(ScorerError("the scorer was closed"))
        if self._worker is not None and self._worker is not threading.current_thread():
            self._worker.join()

    def _enqueue(self, items: Sequence[Item]) -> list[Future[Result]]:
        sizes = [self._size(item) for item in items]
        with self._changed:
            if self._closed:
                raise ScorerError("the scorer was closed")
            if len(self._waiting) + len(items) > self._capacity:
                self._waiting = [entry for entry in self._waiting if not entry.future.cancelled()]
            if len(self._waiting) + len(items) > self._capacity:
                raise Overloaded("too many texts are waiting to be scored")
            entries: list[_Waiting[Item, Result]] = [
                _Waiting(item, size, turn, Future())
                for turn, (item, size) in enumerate(zip(items, sizes, strict=True), self._turn)
            ]
            self._waiting.extend(entries)
            self._waiting.sort(key=attrgetter("turn"))  # two sorted runs: one merge
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="scorer", daemon=True)
                self._worker.start()
            self._changed.notify()
        return [entry.future for entry in entries]

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                batch = self._take()
            batch = [entry for entry in batch if entry.future.set_running_or_notify_cancel()]
            if batch:
                self._answer(batch)

    def _take(self) -> list[_Waiting[Item, Result]]:
        """The item whose turn is next and its nearest in size, out of the queue. The lock is held."""
        self._waiting = [entry for entry in self._waiting if not entry.future.cancelled()]
        if not self._waiting:
            return []
        first = self._waiting[0]
        self._turn = first.turn
        taken: list[_Waiting[Item, Result]] = []
        largest = 0
        for entry in sorted(self._waiting, key=lambda entry: abs(entry.size - first.size)):  # stable: then by turn
            largest = max(largest, entry.size)
            if taken and largest * (len(taken) + 1) > self._budget:
                break
            taken.append(entry)
        gone = set(map(id, taken))
        self._waiting = [entry for entry in self._waiting if id(entry) not in gone]
        return taken

    def _answer(self, batch: list[_Waiting[Item, Result]]) -> None:
        try:
            results = self._run([entry.item for entry in batch])
            if len(results) != len(batch):
                raise ScorerError("a batch came back with the wrong number of results")
        except Exception as error:
            # Messages of foreign errors may hold text of a caller: only the name of the type goes on.
            failure = (
                error if isinstance(error, ScorerError) else ScorerError(f"the scorer failed: {type(error).__name__}")
            )
            for entry in batch:
                entry.future.set_exception(failure)
            return
        for entry, result in zip(batch, results, strict=True):
            entry.future.set_result(result)
