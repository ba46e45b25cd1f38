"""Templates are labelled by goal and form, and examples keep the labels of what they show."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from tokenizers import Tokenizer

from guardrail.safeguard import synthetic
from guardrail.safeguard.examples import make_examples
from guardrail.safeguard.forms import restyle
from guardrail.safeguard.judge import read_tokenizer
from guardrail.safeguard.model import WEIGHTS
from guardrail.safeguard.rows import Row


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return read_tokenizer(WEIGHTS)


@pytest.mark.parametrize(
    ("prompt", "goal"),
    [
        ("How can I bake bread?", "bake bread"),
        ("Please, what?", "please, what"),
        ("What are some common ways to bake bread?", "bake bread"),
        ("Write a poem", "write a poem"),
        ("", ""),
    ],
)
def test_the_goal_of_a_question(prompt: str, goal: str) -> None:
    assert synthetic.goal_of(prompt) == goal


def test_templates_leave_no_gap_open_and_take_braces_in_goals() -> None:
    rng = random.Random(0)
    for write in (synthetic.how_to, synthetic.refusal, synthetic.high_level, synthetic.refusal_then_how_to):
        texts = {write(rng, "draw {curly} braces") for _ in range(50)}
        assert len(texts) > 25
        assert not any("{goal}" in text or "{tool}" in text for text in texts)


def test_a_how_to_is_harmful_only_for_a_harmful_question() -> None:
    rows = synthetic.answers([f"break into house {n}" for n in range(400)], ["bake bread"] * 50, 0.4, seed=0)
    assert Counter(row.harmful for row in rows if row.prompt == "bake bread") == {False: 50}
    bad = [row for row in rows if row.prompt_harmful]
    assert 0.4 < sum(bool(row.harmful) for row in bad) / len(bad) < 0.6
    assert not any(row.harmful and row.refusal for row in rows)
    assert rows == synthetic.answers([f"break into house {n}" for n in range(400)], ["bake bread"] * 50, 0.4, seed=0)
    assert {row.weight for row in rows} == {0.4}


def rows(count: int) -> list[Row]:
    bad = [
        Row("a", f"bad question about some matter {n}", "step " * 300, True, True, False, f"b{n}") for n in range(count)
    ]
    good = [Row("b", f"good question {n}", "bread " * 300, False, False, None, f"g{n}") for n in range(count)]
    return bad + good


def test_examples_stay_within_their_length_and_say_the_same_twice(tokenizer: Tokenizer) -> None:
    examples = make_examples(rows(60), tokenizer, length=64, noise=0.3, seed=1)
    assert examples == make_examples(rows(60), tokenizer, length=64, noise=0.3, seed=1)
    assert examples != make_examples(rows(60), tokenizer, length=64, noise=0.3, seed=2)
    assert all(len(e.prompt) <= 96 and len(e.answer) <= 128 for e in examples)
    assert all(0 <= low < high <= len(e.answer) for e in examples for low, high, _ in e.marks)
    assert any(not e.prompt for e in examples)


def test_tokens_known_to_be_harmless_are_those_of_the_harmless_part(tokenizer: Tokenizer) -> None:
    bread = tokenizer.encode("bread", add_special_tokens=False).ids[0]
    for example in make_examples(rows(60), tokenizer, length=64, noise=0.0, seed=2):
        known = {at for low, high, harmful in example.marks if not harmful for at in range(low, high)}
        assert all((token == bread) == (at in known) for at, token in enumerate(example.answer))
        assert example.answer or example.prompt_harmful is not None
        assert example.target == (None if not example.answer else float(bool(set(example.answer) - {bread})))


def test_marked_sentences_teach_where_the_harm_is(tokenizer: Tokenizer) -> None:
    text = "bread bread step bread"
    row = Row("written", "", text, True, None, False, "g", level=3, spans=((12, 16),))
    (example,) = make_examples([row], tokenizer, length=64, noise=1.0, seed=0)
    assert example.marks == ((0, 2, False), (2, 3, True), (3, 4, False))
    assert example.target == 1.0


def test_a_crop_without_the_marked_sentence_is_harmless(tokenizer: Tokenizer) -> None:
    text = "step " + "bread " * 400
    row = Row("written", "", text, True, None, False, "g", level=3, spans=((0, 4),))
    step = tokenizer.encode("step", add_special_tokens=False).ids[0]
    made = [make_examples([row], tokenizer, length=32, noise=0.0, seed=seed)[0] for seed in range(40)]
    assert {(step in example.answer, example.target) for example in made} == {(True, 1.0), (False, 0.0)}


def test_a_harmful_prompt_makes_no_answer_harmful(tokenizer: Tokenizer) -> None:
    bad = tokenizer.encode("bad", add_special_tokens=False).ids[0]
    examples = make_examples(rows(120), tokenizer, length=64, noise=0.2, seed=3)
    assert any(bad in e.prompt and e.target == 0.0 for e in examples)


def test_another_form_says_the_same() -> None:
    rng = random.Random(5)
    text = "First wash the rice. Then boil it.\n- Add salt\n- Serve warm"
    made = {restyle(rng, text) for _ in range(300)}
    assert len(made) > 60
    kept = [one for one in made if "wash" in one.lower() and "salt" in one.lower()]
    assert len(kept) > 0.6 * len(made)  # the rest has letters lost or doubled
    assert any(one.startswith("```") for one in made)
    assert any(text in json.loads(one).values() for one in made if one.startswith("{") and one.endswith("}"))
