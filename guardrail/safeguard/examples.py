"""From labelled rows to what the network is shown: crops, joins, other forms, mismatched and missing prompts.

They are drawn anew for every epoch, so that no answer is seen twice in the same dress.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tokenizers import Tokenizer

from guardrail.safeguard.forms import restyle
from guardrail.safeguard.rows import Row
from guardrail.safeguard.windows import clip_prompt

EMPTY_PROMPT = 0.3
"""How often an answer is shown without its prompt: it must be judged then as well."""

BARE_GOAL = 0.5
"""How often a jailbreak prompt is replaced by the question inside it."""

Mark = tuple[int, int, bool]

JOINED = 0.4
"""The share of harmful answers that are shown amid harmless ones too."""

SHORTENED = 0.15
"""How often only the first words of a harmless answer are shown: short answers are harmless as often as long ones."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of both segments, with targets; None is not known.

    `marks` are half-open ranges of answer tokens of which it is known whether they are harmful.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    target: float | None = None
    prompt_harmful: bool | None = None
    refusal: bool | None = None
    level: int | None = None
    contents: tuple[str, ...] | None = None
    marks: tuple[Mark, ...] = ()
    weight: float = 1.0


def make_examples(rows: Sequence[Row], tokenizer: Tokenizer, length: int, noise: float, seed: int) -> list[Example]:
    """`length`: answer tokens of an ordinary crop; `noise`: share of the answers in another form."""
    rng = random.Random(seed)
    answered = [row for row in rows if row.response and row.harmful is not None]
    prompts = _ids(tokenizer, [_shown_prompt(rng, row) for row in answered])
    texts = [_shown_answer(rng, row, noise) for row in answered]
    answers = tokenizer.encode_batch(texts, add_special_tokens=False)
    examples = [
        _crop(rng, row, prompt, answer.ids, _marks(row, answer.offsets), length)
        for row, prompt, answer in zip(answered, prompts, answers, strict=True)
    ]
    plain = list(examples)
    examples += _joins(rng, plain, length)
    examples += _mismatches(rng, answered, prompts, plain)
    return examples + _prompt_alone(rng, rows, tokenizer)


def _shown_prompt(rng: random.Random, row: Row) -> str:
    if rng.random() < EMPTY_PROMPT:
        return ""
    return row.goal if row.goal and rng.random() < BARE_GOAL else row.prompt


def _shown_answer(rng: random.Random, row: Row, noise: float) -> str:
    text = row.response[:12_000]
    return restyle(rng, text[:4000]) if rng.random() < noise and not row.spans else text


def _marks(row: Row, offsets: Sequence[tuple[int, int]]) -> list[Mark]:
    """Token ranges from the marked characters; of a harmless answer, all of it."""
    if not row.harmful:
        return [(0, len(offsets), False)]
    if not row.spans:
        return []
    marks: list[Mark] = []
    for at, (low, high) in enumerate(offsets):
        harmful = any(low < end and start < high for start, end in row.spans)
        if marks and marks[-1][2] == harmful:
            marks[-1] = (marks[-1][0], at + 1, harmful)
        else:
            marks.append((at, at + 1, harmful))
    return marks


def _crop(
    rng: random.Random, row: Row, prompt: list[int], answer: list[int], marks: Sequence[Mark], length: int
) -> Example:
    weight = row.weight
    size = 2 * length if rng.random() < 1 / 7 else length
    target, start = row.target, 0
    if len(answer) > size and rng.random() < 0.25:
        start = rng.randrange(len(answer) - size + 1)
        answer = answer[start:]
        weight *= 0.5 if row.harmful else 1.0  # the harm may lie outside the crop
    if not row.harmful and rng.random() < SHORTENED:
        size = rng.randint(4, 40)
    answer = answer[:size]
    marks = tuple(_moved(marks, -start, len(answer)))
    if row.spans and not any(harmful for _, _, harmful in marks):
        target = 0.0
    return Example(
        prompt=clip_prompt(prompt),
        answer=tuple(answer),
        target=target,
        refusal=row.refusal,
        level=row.level,
        contents=row.contents if row.contents is not None or row.prompt_harmful is not False else (),
        marks=marks,
        weight=weight,
    )


def _moved(marks: Sequence[Mark], by: int, size: int) -> Iterator[Mark]:
    """The marks within `[0, size)` after a move."""
    for low, high, harmful in marks:
        low, high = max(0, low + by), min(size, high + by)
        if low < high:
            yield low, high, harmful


def _joins(rng: random.Random, examples: Sequence[Example], length: int) -> list[Example]:
    """Harmful answers amid harmless ones: token scores learn where the harm is, and that harmless text hides none."""
    harmful = [e for e in examples if e.target and e.target > 0.5 and len(e.answer) > 20]
    harmless = [e for e in examples if e.target is not None and e.target < 0.1 and len(e.answer) > 20]
    joined = []
    for example in rng.sample(harmful, int(len(harmful) * JOINED)) if harmless else []:
        kept = example.answer[: rng.randint(20, length)]
        sides = rng.choice(("before", "after", "around"))
        before = _part(rng, harmless, length) if sides != "after" else ()
        after = _part(rng, harmless, length) if sides != "before" else ()
        own = list(_moved(example.marks, len(before), len(before) + len(kept)))
        if example.marks and not any(harmful for _, _, harmful in own):
            continue  # what was marked as harmful was cut off
        ends = len(before) + len(kept), len(before) + len(kept) + len(after)
        marks = [(0, len(before), False), *own, (*ends, False)]
        marks = [mark for mark in marks if mark[0] < mark[1]]
        answer = (*before, *kept, *after)
        joined.append(replace(example, answer=answer, marks=tuple(marks), refusal=None, contents=None))
    return joined


def _part(rng: random.Random, examples: Sequence[Example], length: int) -> tuple[int, ...]:
    return rng.choice(examples).answer[: rng.randint(10, length * 3 // 4)]


def _mismatches(
    rng: random.Random, rows: Sequence[Row], prompts: Sequence[list[int]], examples: Sequence[Example]
) -> list[Example]:
    """Harmless answers under somebody else's harmful prompt: the prompt alone makes no answer harmful."""
    bad = [prompt for row, prompt in zip(rows, prompts, strict=True) if row.prompt_harmful and 4 < len(prompt) < 60]
    good = [e for row, e in zip(rows, examples, strict=True) if row.prompt_harmful is False]
    if not bad or not good:
        return []
    return [replace(e, prompt=tuple(rng.choice(bad))) for e in rng.sample(good, len(good) // 8)]


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
