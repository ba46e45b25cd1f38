"""From labelled rows to what the network is shown: crops, joins, mismatched and missing prompts.

Each row gives one example, so that the frozen layers need to run once; variety comes from many rows, not many epochs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from guardrail.safeguard.rows import Row
from guardrail.safeguard.windows import clip_prompt

EMPTY_PROMPT = 0.35
"""How often an answer is shown without its prompt: it must be judged then as well."""

BARE_GOAL = 0.5
"""How often a jailbreak prompt is replaced by the question inside it."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of both segments, with targets; None is not known.

    `harmless` is the range of answer tokens known to be so.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    harmful: bool | None = None
    prompt_harmful: bool | None = None
    refusal: bool | None = None
    harmless: tuple[int, int] = (0, 0)
    weight: float = 1.0


def make_examples(rows: Sequence[Row], tokenizer: Tokenizer, length: int, seed: int) -> list[Example]:
    """`length`: answer tokens of an ordinary crop; one crop in seven is twice as long."""
    rng = random.Random(seed)
    answered = [row for row in rows if row.response and row.harmful is not None]
    prompts = _ids(tokenizer, [_shown_prompt(rng, row) for row in answered])
    answers = _ids(tokenizer, [row.response[:12_000] for row in answered])
    examples = [
        _crop(rng, row, prompt, answer, length) for row, prompt, answer in zip(answered, prompts, answers, strict=True)
    ]
    examples += _joins(rng, examples, length)
    examples += _mismatches(rng, answered, prompts, examples)
    return examples + _prompt_alone(rng, rows, tokenizer)


def _shown_prompt(rng: random.Random, row: Row) -> str:
    if rng.random() < EMPTY_PROMPT:
        return ""
    return row.goal if row.goal and rng.random() < BARE_GOAL else row.prompt


def _crop(rng: random.Random, row: Row, prompt: list[int], answer: list[int], length: int) -> Example:
    weight = row.weight
    size = 2 * length if rng.random() < 1 / 7 else length
    if len(answer) > size and rng.random() < 0.2:
        start = rng.randrange(len(answer) - size + 1)
        answer = answer[start:]
        weight *= 0.5 if row.harmful else 1.0  # the harm may lie outside the crop
    return Example(
        prompt=clip_prompt(prompt),
        answer=tuple(answer[:size]),
        harmful=row.harmful,
        refusal=row.refusal,
        harmless=(0, 0) if row.harmful else (0, min(size, len(answer))),
        weight=weight,
    )


def _joins(rng: random.Random, examples: Sequence[Example], length: int) -> list[Example]:
    """Harmful answers with a harmless one before or after them: the token scores learn where the harm is."""
    harmful = [e for e in examples if e.harmful and len(e.answer) > 40]
    harmless = [e for e in examples if e.harmful is False and len(e.answer) > 40]
    joined = []
    for example in rng.sample(harmful, len(harmful) // 4):
        other = rng.choice(harmless).answer[: rng.randint(30, length // 2)]
        kept = example.answer[: length - 20]
        if rng.random() < 0.5:
            joined.append(replace(example, answer=other + kept, harmless=(0, len(other))))
        else:
            joined.append(replace(example, answer=kept + other, harmless=(len(kept), len(kept) + len(other))))
    return joined


def _mismatches(
    rng: random.Random, rows: Sequence[Row], prompts: Sequence[list[int]], examples: Sequence[Example]
) -> list[Example]:
    """Harmless answers under somebody else's harmful prompt: the prompt alone makes no answer harmful."""
    bad = [prompt for row, prompt in zip(rows, prompts, strict=True) if row.prompt_harmful and 4 < len(prompt) < 60]
    good = [e for row, e in zip(rows, examples, strict=False) if row.prompt_harmful is False]
    if not bad or not good:
        return []
    return [replace(e, prompt=tuple(rng.choice(bad))) for e in rng.sample(good, len(good) // 6)]


def _prompt_alone(rng: random.Random, rows: Sequence[Row], tokenizer: Tokenizer) -> list[Example]:
    labelled = {row.prompt: row.prompt_harmful for row in rows if row.prompt_harmful is not None and row.prompt}
    by_label: dict[bool, list[str]] = {True: [], False: []}
    for text, label in labelled.items():
        by_label[bool(label)].append(text)
    most = min(2000, *(len(texts) for texts in by_label.values())) if all(by_label.values()) else 0
    examples = []
    for label, texts in by_label.items():
        rng.shuffle(texts)
        for ids in _ids(tokenizer, texts[: most + most // 4]):
            examples.append(Example(prompt=clip_prompt(ids), answer=(), prompt_harmful=label))
    return examples


def _ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
