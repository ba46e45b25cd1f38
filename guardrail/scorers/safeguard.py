"""The embedded safeguard as a scorer: passages in, calibrated scores, spans and routing embeddings out.

The steps are `guardrail.safeguard.judge`'s; here they run off the event loop, behind two queues that take many callers'
texts together: one cuts them into windows, one reads the windows. torch loads when the scorer does, not when this file
is imported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from guardrail.errors import ScorerError
from guardrail.scorers.batching import BatchQueue
from guardrail.scoring import Passage, Score, Vector

if TYPE_CHECKING:
    from guardrail.safeguard.judge import Input, Judge, Output, Plan

BATCH_TOKENS = 1024
EMBEDDED_TOKENS = 256
QUEUE_WINDOWS = 16384  # of which one flow may have half
BATCH_CHARACTERS = 1 << 16
QUEUE_PASSAGES = 4096

Given = TypeVar("Given")
Made = TypeVar("Made")


class SafeguardScorer:
    """A `guardrail.scoring.Scorer`. Build it with `load`; `close` it when done.

    `Passage(prompt, text="")` asks about the prompt alone and is judged by a head of its own; so an *answer* that is
    empty should not be sent here. Other blank text scores 0 without a pass.
    """

    def __init__(self, judge: Judge, fingerprint: str) -> None:
        self._judge = judge
        self._fingerprint = fingerprint
        self._combining = ThreadPoolExecutor(1, thread_name_prefix="combine")
        self._passages: BatchQueue[Passage, Plan] = BatchQueue(
            judge.plan,
            lambda passage: len(passage.text) - passage.start,
            budget=BATCH_CHARACTERS,
            capacity=QUEUE_PASSAGES,
        )
        self._queue: BatchQueue[Input, Output] = BatchQueue(
            judge.read, lambda given: given.size, budget=BATCH_TOKENS, capacity=QUEUE_WINDOWS
        )

    @classmethod
    def load(cls, path: Path | None = None, threads: int | None = None, *, int8: bool = True) -> SafeguardScorer:
        """Read the weights in the folder `path` (default: those in the package); no network is used.

        `threads` sets torch's threads for the whole process. Raises `ScorerError` if the weights cannot be read.
        """
        import torch

        from guardrail.safeguard import model
        from guardrail.safeguard.judge import Judge

        if threads is not None:
            torch.set_num_threads(threads)
        folder = path or model.WEIGHTS
        try:
            return cls(Judge.load(folder, int8=int8), f"safeguard:{model.weights_hash(folder)[:16]}")
        except Exception as error:  # tokenizers raises bare ones
            raise ScorerError(f"the safeguard's weights cannot be read: {type(error).__name__} in {folder}") from error

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    async def score(self, passages: Sequence[Passage]) -> list[Score]:
        flow = passages[0].flow if passages else ""
        plans = await self._passages.submit(passages, flow)
        inputs = [given for plan in plans for given in plan.inputs]
        outputs = await self._queue.submit(inputs, flow)
        return await self._off_loop(lambda made: self._judge.combine(plans, made), outputs)

    async def embed(self, texts: Sequence[str]) -> Vector:
        """Unit vectors, shape (len(texts), dimension); of a long text, its first window's."""
        from guardrail.safeguard.judge import Input

        encoded = await self._off_loop(self._judge.encode, texts)
        outputs = await self._queue.submit([Input((), tuple(tokens.ids[:EMBEDDED_TOKENS])) for tokens in encoded])
        if not outputs:
            return np.zeros((0, self._judge.settings.shape.width), dtype=np.float32)
        return np.stack([output.embedding for output in outputs])

    def close(self) -> None:
        """Fail who waits, end the threads. Safe to call twice."""
        self._passages.close()
        self._queue.close()
        self._combining.shutdown(wait=True)

    async def _off_loop(self, step: Callable[[Given], Made], given: Given) -> Made:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._combining, step, given)
        except Exception as error:  # its message may hold text, so only its type goes on
            raise ScorerError(f"the safeguard failed: {type(error).__name__}") from None
