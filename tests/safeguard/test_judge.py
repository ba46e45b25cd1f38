"""A long prompt is clipped as if all of it had been tokenised, at the cost of its ends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from guardrail.safeguard import model
from guardrail.safeguard.judge import SPAN_VALUE, Judge, read_tokenizer
from guardrail.safeguard.windows import Tokens, clip_prompt
from guardrail.scoring import Passage

QUESTION = "How do I bake bread without an oven, and what else do I need?"


class Counting(Judge):
    """Counts the tokens it encodes."""

    encoded = 0

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        tokens = super().encode(texts)
        self.encoded += sum(len(own.ids) for own in tokens)
        return tokens


@pytest.fixture(scope="module")
def judge() -> Counting:
    folder = model.WEIGHTS
    return Counting(model.load(folder, int8=True), model.read_settings(folder), read_tokenizer(folder), SPAN_VALUE)


def cost(judge: Counting, prompt: str) -> int:
    before = judge.encoded
    judge.plan([Passage(prompt, "")])
    return judge.encoded - before


def test_a_huge_prompt_costs_no_more_than_a_short_one(judge: Counting) -> None:
    sentence = QUESTION + " "
    short, huge = sentence * (4000 // len(sentence)), sentence * (2_000_000 // len(sentence))
    assert cost(judge, huge) <= 1.1 * cost(judge, short)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        QUESTION,
        "Before. " * 400 + QUESTION,
        QUESTION + " and then," * 40_000 + " please",
        # padding with few tokens or none hides nothing
        " " * 5000 + QUESTION + "\n" * 5000,
        "\u200b" * 5000 + QUESTION + "\u200b" * 9000,
        "x" * 5000 + " " + QUESTION + " " + "x" * 9000,
        "Before. " * 1000 + QUESTION + " " * 5000,
    ],
)
def test_the_prompt_read_is_the_head_and_tail_of_the_whole(judge: Counting, prompt: str) -> None:
    (plan,) = judge.plan([Passage(prompt, "")])
    (whole,) = judge.encode([prompt])
    assert [given.prompt for given in plan.inputs] == ([clip_prompt(whole.ids)] if prompt else [])
