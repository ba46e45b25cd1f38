"""A queue in front of a slow function: callers wait without blocking their event loop, work goes out in batches.

One worker thread runs the function; `guardrail.scorers.turns` says what it takes next. Callers who left are skipped, a
failing batch fails its own callers, a full queue says so at once. The futures belong to no event loop until they are
awaited, so several loops may use one queue, at a time or one after another.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from guardrail.errors import Overloaded, ScorerError
from guardrail.scorers.turns import Turns

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    future: Future[Result]

    def left(self) -> bool:
        return self.future.cancelled()


class BatchQueue(Generic[Item, Result]):
    """`run` is called in the worker thread with items of like size, and gives one result for each, in order.

    `budget` bounds the largest size in a batch times its length; `capacity` bounds how many items may wait, of which
    one flow may have half.
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
        self._turns: Turns[_Waiting[Item, Result]] = Turns(budget, capacity)
        self._changed = threading.Condition()
        self._worker: threading.Thread | None = None
        self._closed = False

    async def submit(self, items: Sequence[Item], flow: str = "") -> list[Result]:
        """The result of each item. Raises `Overloaded` if they do not all fit, `ScorerError` if their batch failed.

        `flow` is whose the items are: flows share the worker evenly. A caller that is cancelled leaves the queue; what
        was not begun for it never runs.
        """
        if not items:
            return []
        futures = self._enqueue(items, flow)
        try:
            return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))
        finally:
            for future in futures:
                future.cancel()  # no effect on those that are done

    def close(self) -> None:
        """Fail what still waits, let the running batch end, and stop the worker. Safe to call twice."""
        with self._changed:
            self._closed = True
            left = self._turns.clear()
            self._changed.notify_all()
        for entry in left:
            if entry.future.set_running_or_notify_cancel():
                entry.future.set_exception(ScorerError("the scorer was closed"))
        if self._worker is not None and self._worker is not threading.current_thread():
            self._worker.join()

    def _enqueue(self, items: Sequence[Item], flow: str) -> list[Future[Result]]:
        sizes = [self._size(item) for item in items]
        entries: list[_Waiting[Item, Result]] = [_Waiting(item, Future()) for item in items]
        with self._changed:
            if self._closed:
                raise ScorerError("the scorer was closed")
            try:
                self._turns.add(entries, sizes, flow)
            except Overloaded:
                self._turns.drop(_Waiting.left)  # who left may make room
                self._turns.add(entries, sizes, flow)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="scorer", daemon=True)
                self._worker.start()
            self._changed.notify()
        return [entry.future for entry in entries]

    def _work(self) -> None:
        while True:
            with self._changed:
                while not len(self._turns) and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                self._turns.drop(_Waiting.left)
                batch = self._turns.take()
            batch = [entry for entry in batch if entry.future.set_running_or_notify_cancel()]
            if batch:
                self._answer(batch)

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
