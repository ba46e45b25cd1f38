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

import numpy as np
import torch
from torch import Tensor, nn

from guardrail.errors import ConfigError
from guardrail.safeguard import model
from guardrail.safeguard.judge import BATCH_TOKENS, Input, Judge, Output, Plan, read_tokenizer
from guardrail.safeguard.measures import Numbers
from guardrail.safeguard.model import Calibration, Reading
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
        network.register_forward_hook(self._keep)
        self.name = name
        self.judge = Judge(network, settings, tokenizer, span_value=0.0)
        self.made: dict[str, Any] = settings.manifest
        self._tokens = settings.tokens
        self._has_all = not absent
        self._reading: Reading | None = None
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
        inputs = [given for plan in plans for given in plan.inputs]
        outputs: dict[int, tuple[Output, Numbers]] = {}
        batch: list[int] = []
        for index in [*sorted(range(len(inputs)), key=lambda i: inputs[i].size), -1]:
            if batch and (index < 0 or (len(batch) + 1) * inputs[index].size > BATCH_TOKENS):
                outputs.update(zip(batch, self._pass([inputs[i] for i in batch]), strict=True))
                batch = []
            batch.append(index)
        read = [outputs[i] for i in range(len(inputs))]
        looks, position = [], 0
        for plan, score in zip(plans, self.judge.combine(plans, [output for output, _ in read]), strict=True):
            mine = read[position : position + len(plan.inputs)]
            position += len(plan.inputs)
            looks.append(self._look(plan, score, mine))
        return looks

    def _pass(self, inputs: Sequence[Input]) -> list[tuple[Output, Numbers]]:
        """What the judge keeps of one batch, and beside it the heads as they are: severity, then contents."""
        outputs = self.judge.read(inputs)
        reading = self._reading
        assert reading is not None  # noqa: S101 - the hook has run
        heads = torch.cat([reading.severity[:, None], reading.contents], 1)
        return list(zip(outputs, heads.double().numpy(), strict=True))

    def _look(self, plan: Plan, score: Score, read: Sequence[tuple[Output, Numbers]]) -> Look:
        if not read or not plan.windows:
            return Look(score.value, (logit(score.value),) * 2, readable=score.verdict is Verdict.SCORED)
        whole = max(output.facilitation for output, _ in read)
        hottest = max((_inverse(self._tokens, span.value) for span in score.spans), default=whole)
        heads = np.stack([row for _, row in read])
        highest = [_sigmoid(float(value)) for value in heads.max(0)]
        contents = tuple(score.contents.get(name, raw) for name, raw in zip(CONTENTS, highest[1:], strict=True))
        return Look(
            value=score.value,
            logits=(whole, hottest),
            tokens=len(plan.tokens.ids),
            spans=score.spans,
            readable=score.verdict is Verdict.SCORED,
            refusal=score.refusal,
            severity=highest[0] if self._has_all else None,
            contents=contents if self._has_all else None,
        )

    def _keep(self, _: nn.Module, __: tuple[Tensor, ...], reading: Reading) -> None:
        self._reading = reading


def set_threads(count: int) -> None:
    """Of the whole process."""
    torch.set_num_threads(count)


def logit(value: float) -> float:
    clipped = min(max(value, 1e-12), 1 - 1e-12)
    return math.log(clipped / (1 - clipped))


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-min(max(x, -30.0), 30.0)))


def _inverse(calibration: Calibration, value: float) -> float:
    """The logit that the curve made `value` of."""
    return (logit(value) - calibration.bias) / calibration.scale if calibration.scale > 0 else logit(value)
