"""The embedded safeguard as a scorer: passages in, calibrated scores, spans and routing embeddings out.

A passage becomes windows (`guardrail.safeguard.windows`); each is read with the prompt and without it, and the worst reading
is the score, so that no prompt can talk it down. Tokenising and the network run in threads of their own. torch and
transformers load when the scorer does, not when this file is imported.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from guardrail.errors import ScorerError
from guardrail.safeguard.windows import Tokens, Window, clip_prompt, cut_windows, sentences
from guardrail.scorers.batching import BatchQueue
from guardrail.scoring import Passage, Score, Span, Vector

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from guardrail.safeguard.model import Calibration, Network, Settings

SPAN_VALUE = 0.5
"""A sentence stands among a score's spans from this value on."""

BATCH_TOKENS = 4096
QUEUE_ITEMS = 8192
CLS, SEP = 101, 102

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Input:
    """Token ids of one pass: `[CLS] prompt [SEP] answer [SEP]`, without the marks."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """What one pass says: logits, a logit for each token of the answer, a unit vector."""

    facilitation: float
    prompt: float
    tokens: Vector
    embedding: Vector


@dataclass(frozen=True, slots=True)
class _Plan:
    """A passage cut up: its windows, and the inputs that read them (with the prompt first, then without)."""

    tokens: Tokens
    windows: Sequence[Window]
    inputs: Sequence[Input]


class SafeguardScorer:
    """A `guardrail.scoring.Scorer`. Build it with `load`; `close` it when done.

    `Passage(prompt, text="")` asks about the prompt alone and is judged by a head of its own; so an *answer* that is empty
    should not be sent here. Other blank text scores 0 without a pass.
    """

    def __init__(
        self,
        network: Network,
        settings: Settings,
        tokenizer: Tokenizer,
        fingerprint: str,
        span_value: float = SPAN_VALUE,
    ) -> None:
        self._network = network
        self._settings = settings
        self._tokenizer = tokenizer
        self._fingerprint = fingerprint
        self._span_value = span_value
        self._tokenising = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._queue = BatchQueue(self._read, _size, budget=BATCH_TOKENS, capacity=QUEUE_ITEMS)

    @classmethod
    def load(
        cls,
        path: Path | None = None,
        threads: int | None = None,
        *,
        int8: bool = True,
        settings: Settings | None = None,
        span_value: float = SPAN_VALUE,
    ) -> SafeguardScorer:
        """Read the weights at `path` (default: those in the package); no network is used.

        `threads` sets torch's threads for the whole process; `settings` stand in for those beside the weights. Raises `ScorerError` if the weights cannot be read.
        """
        import torch
        from tokenizers import Tokenizer

        from guardrail.safeguard import model

        folder = path or model.WEIGHTS
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            network = model.load(folder, int8=int8)
            fingerprint = f"safeguard:{model.weights_hash(folder)[:16]}"
            return cls(network, settings or model.read_settings(folder), tokenizer, fingerprint, span_value)
        except Exception as error:  # tokenizers raises bare exceptions
            raise ScorerError(f"the safeguard's weights in {folder} cannot be read: {type(error).__name__}") from error

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    async def score(self, passages: Sequence[Passage]) -> list[Score]:
        loop = asyncio.get_running_loop()
        plans = await loop.run_in_executor(self._tokenising, self._plan, passages)
        outputs = await self._queue.submit([look for plan in plans for look in plan.inputs])
        scores, position = [], 0
        for passage, plan in zip(passages, plans, strict=True):
            own = outputs[position : position + len(plan.inputs)]
            position += len(plan.inputs)
            scores.append(self._combine(passage, plan, own))
        return scores

    async def embed(self, texts: Sequence[str]) -> Vector:
        """Unit vectors, shape (len(texts), dimension); of a long text, its first window's."""
        loop = asyncio.get_running_loop()
        encoded = await loop.run_in_executor(self._tokenising, self._encode, texts)
        inputs = [Input((), tuple(tokens.ids[:256])) for tokens in encoded]
        outputs = await self._queue.submit(inputs)
        if not outputs:
            return np.zeros((0, self._settings.shape.width), dtype=np.float32)
        return np.stack([output.embedding for output in outputs])

    def close(self) -> None:
        self._queue.close()
        self._tokenising.shutdown(wait=True)

    def _encode(self, texts: Sequence[str]) -> list[Tokens]:
        whole = [_SURROGATE.sub("\ufffd", text) for text in texts]  # the tokenizer takes no lone surrogates
        return [Tokens(e.ids, e.offsets) for e in self._tokenizer.encode_batch(whole, add_special_tokens=False)]

    def _plan(self, passages: Sequence[Passage]) -> list[_Plan]:
        prompts = self._encode([passage.prompt for passage in passages])
        texts = self._encode([passage.text for passage in passages])
        return [_cut(*given) for given in zip(passages, prompts, texts, strict=True)]

    def _combine(self, passage: Passage, plan: _Plan, outputs: Sequence[Output]) -> Score:
        if not outputs:
            return Score(0.0)
        if not plan.windows:
            return Score(_probability(self._settings.prompt, outputs[0].prompt), embedding=outputs[0].embedding)
        value = max(_probability(self._settings.facilitation, output.facilitation) for output in outputs)
        heat = np.full(len(plan.tokens.ids), -np.inf, dtype=np.float32)
        looks = len(outputs) // len(plan.windows)
        for index, output in enumerate(outputs):
            window = plan.windows[index // looks]
            np.maximum(heat[window.low : window.high], output.tokens, out=heat[window.low : window.high])
        spans = self._spans(passage, plan.tokens, heat, value)
        embedding = np.mean([output.embedding for output in outputs[::looks]], axis=0)
        return Score(value, spans, embedding=embedding / max(float(np.linalg.norm(embedding)), 1e-9))

    def _spans(self, passage: Passage, tokens: Tokens, heat: Vector, value: float) -> tuple[Span, ...]:
        """Sentences that end after `passage.start` and score; if only the whole does, the one that says most."""
        starts = np.array([low for low, _ in tokens.offsets])
        judged = []
        for low, high in sentences(passage.text):
            first, last = np.searchsorted(starts, (low, high))
            if high > passage.start and last > first:
                logit = _smooth_maximum(heat[first:last])
                judged.append(Span(low, high, _probability(self._settings.tokens, logit)))
        found = tuple(span for span in judged if span.value >= self._span_value)
        if not found and judged and value >= SPAN_VALUE:
            return (max(judged, key=lambda span: span.value),)
        return found

    def _read(self, inputs: Sequence[Input]) -> list[Output]:
        """One batch through the network, in the queue's thread."""
        import torch

        longest = max(map(_size, inputs))
        ids, mask, segments = (torch.zeros(len(inputs), longest, dtype=torch.long) for _ in range(3))
        for row, given in enumerate(inputs):
            first = [CLS, *given.prompt, SEP]
            whole = [*first, *given.answer, SEP] if given.answer else first
            ids[row, : len(whole)] = torch.tensor(whole)
            mask[row, : len(whole)] = 1
            segments[row, len(first) : len(whole)] = 1
        with torch.inference_mode():
            reading = self._network(ids, mask, segments)
        facilitation, prompt = reading.facilitation.tolist(), reading.prompt.tolist()
        tokens, embedding = reading.tokens.numpy(), reading.embedding.numpy()
        outputs = []
        for row, given in enumerate(inputs):
            begin = len(given.prompt) + 2
            heat = tokens[row, begin : begin + len(given.answer)]
            if not math.isfinite(facilitation[row]):
                raise ScorerError("the safeguard gave no number")
            outputs.append(Output(facilitation[row], prompt[row], heat.copy(), embedding[row].copy()))
        return outputs


def _cut(passage: Passage, prompt: Tokens, text: Tokens) -> _Plan:
    shown = clip_prompt(prompt.ids)
    if not passage.text:
        return _Plan(text, (), [Input(shown, ())] if shown else [])
    windows = cut_windows(text, passage.start)
    inputs = []
    for window in windows:
        answer = tuple(text.ids[window.low : window.high])
        inputs += [Input(shown, answer), Input((), answer)] if shown else [Input((), answer)]
    return _Plan(text, windows, inputs)


def _size(given: Input) -> int:
    return len(given.prompt) + len(given.answer) + (3 if given.answer else 2)


def _probability(calibration: Calibration, logit: float) -> float:
    """Logistic, clipped so that no score claims certainty."""
    x = calibration.scale * logit + calibration.bias
    return 1.0 / (1.0 + math.exp(-min(max(x, -30.0), 30.0)))


def _smooth_maximum(logits: Vector, sharpness: float = 2.0) -> float:
    """As `guardrail.safeguard.model.smooth_maximum`, over the tokens of one sentence."""
    top = float(logits.max())
    return top + math.log(float(np.mean(np.exp(sharpness * (logits - top))))) / sharpness
