"""All that the safeguard says of an answer, every head of it, for measuring: serving needs less.

Every distinct (prompt, answer) is read once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from guardrail.errors import ConfigError
from guardrail.safeguard import model
from guardrail.safeguard.judge import Judge, Output, Plan, read_tokenizer
from guardrail.safeguard.written import CONTENTS
from guardrail.scoring import Passage, Score, Span, Verdict

TOGETHER = 64
"""Answers cut up at once: few enough to tell how far it is."""

TELL_SECONDS = 20

Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Look:
    """What a judge says of one answer. Heads it does not have are None.

    `logits`: what its probability is made of. `severity` and `contents` (in the order of `CONTENTS`; calibrated where
    there is a curve) are the highest over all windows, `refusal` is the score's own.
    """

    value: float
    logits: tuple[float, ...]
    tokens: int = 0
    spans: tuple[Span, ...] = ()
    readable: bool | None = None
    refusal: float | None = None
    severity: float | None = None
    contents: tuple[float, ...] | None = None


class Judging(Protocol):
    @property
    def name(self) -> str: ...

    def read(self, pairs: Pairs) -> Sequence[Look]: ...


class Reader:
    """The safeguard of a folder of weights, with every head. A pair without an answer asks about its prompt alone."""

    def __init__(self, name: str, folder: Path) -> None:
        try:
            network, settings, absent = model.load_older(folder)
            tokenizer = read_tokenizer(folder)
            self.hash = model.weights_hash(folder)
        except Exception as error:  # safetensors and tokenizers raise bare ones
            raise ConfigError(f"{name}: the weights in {folder} cannot be read: {type(error).__name__}") from error
        self.name = name
        self.judge = Judge(network, settings, tokenizer, span_value=0.0)
        self.made: dict[str, Any] = settings.manifest
        self._has_all = not absent
        self._known: dict[tuple[str, str], Look] = {}

    def read(self, pairs: Pairs) -> list[Look]:
        new = sorted(set(pairs) - set(self._known), key=lambda pair: (sum(map(len, pair)), pair))
        begun = told = time.monotonic()
        for at in range(0, len(new), TOGETHER):
            some = new[at : at + TOGETHER]
            self._known.update(zip(some, self._read(some), strict=True))
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                print(f"    {self.name}: {at + len(some):,} of {len(new):,}", flush=True)
        if len(new) > TOGETHER:
            seconds = time.monotonic() - begun
            print(f"    {self.name}: {len(new):,} in {seconds:.0f} s, {len(new) / seconds:.0f} a second", flush=True)
        return [self._known[pair] for pair in pairs]

    def _read(self, pairs: Pairs) -> list[Look]:
        plans = self.judge.plan([Passage(prompt, text) for prompt, text in pairs])
        outputs = self.judge.read_all(plans)
        scores = self.judge.combine(plans, outputs)
        looks, position = [], 0
        for plan, score in zip(plans, scores, strict=True):
            mine = outputs[position : position + len(plan.inputs)]
            position += len(plan.inputs)
            looks.append(self._look(plan, score, mine))
        return looks

    def _look(self, plan: Plan, score: Score, outputs: Sequence[Output]) -> Look:
        if not plan.windows:
            return Look(score.value, (logit(score.value),) * 4, readable=score.verdict is Verdict.SCORED)
        (evidence,) = self.judge.weigh([plan], outputs)
        raw = [_sigmoid(float(value)) for value in evidence.contents]
        contents = tuple(score.contents.get(name, value) for name, value in zip(CONTENTS, raw, strict=True))
        return Look(
            value=score.value,
            logits=evidence.logits,
            tokens=len(plan.tokens.ids),
            spans=score.spans,
            readable=score.verdict is Verdict.SCORED,
            refusal=score.refusal,
            severity=_sigmoid(evidence.severity) if self._has_all else None,
            contents=contents if self._has_all else None,
        )


def set_threads(count: int) -> None:
    """Of the whole process."""
    torch.set_num_threads(count)


def logit(value: float) -> float:
    clipped = min(max(value, 1e-12), 1 - 1e-12)
    return math.log(clipped / (1 - clipped))


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-min(max(x, -30.0), 30.0)))
