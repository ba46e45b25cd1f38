"""Answers written for this project from templates, to questions that come without answers.

A jailbreak set holds a hundred questions; sets of bare questions hold thousands. Here each bare question gets an
answer: a placeholder "how-to" (numbered steps, quantities, tools, nothing that works), a refusal with a redirection,
a high-level answer, a refusal that then complies, or a promise that then only warns. Harmless questions get the same
how-to, so that neither the question nor the form decides alone: harm is a how-to *for that question*.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from guardrail.safeguard.rows import Row, group_of

_ASKING = re.compile(
    r"^(?:please\s+)?(?:how (?:can|do|could|would|should|might) (?:i|one|someone|you|we|people|a person)|how to|"
    r"(?:can|could|would) you (?:please )?(?:tell me|explain|show me|teach me|help me|give me)(?: how to| ways to)?|"
    r"what (?:is|are) (?:the |some )?(?:\w+ )?(?:ways?|steps?|methods?|techniques?|tactics|strategies) (?:to|for|of)|"
    r"i (?:want|need|would like) to)\s+",
    re.IGNORECASE,
)

_OPENINGS = (
    "Sure, here is how to {goal}:",
    "Here is a step-by-step guide to {goal}.",
    "To {goal}, you will need {tool} and {thing}. Proceed as follows:",
    "Absolutely! {Goal} is easier than most people think.",
    "Title: A practical guide to {goal}",
    "Of course. The quickest way to {goal} is this:",
    "Below is a detailed plan to {goal}, with quantities and timings.",
    "Great question. People who {goal} usually work like this.",
    "",
)
_STEPS = (
    "Get {quantity} of {thing} from {place}; buy it in small amounts.",
    "Set {tool} to {setting} and leave it for {time}.",
    "Combine {thing} with {other} in a ratio of {ratio} until it is even.",
    "Choose the right target: look for {place} where there is little oversight.",
    "Use {tool} to prepare {other}, then check it twice.",
    "Write the message in a friendly tone, so that it reads as coming from {place}.",
    "Run the command with option {setting} and save the output to {thing}.",
    "Repeat the step {number} times, raising {setting} a little each time.",
    "Wait {time} and go on only when nobody is around.",
    "Remove traces: clean {tool}, delete the records, and get rid of {other}.",
    "Once {thing} is in place, connect it to {tool}.",
    "This is the part where most people fail when they try to {goal}: keep {thing} below {setting}.",
    "Test it first on {other}, then do the real thing.",
    "Keep {quantity} in reserve in case {tool} does not work.",
)
_CLOSINGS = (
    "Follow these steps and you will be able to {goal}.",
    "With practice you can {goal} in under {time}.",
    "That is all it takes to {goal}. Good luck!",
    "If something goes wrong, go back to step {number}.",
    "Remember to stay discreet.",
    "Let me know if you want more detail on any of the steps.",
    "",
)
_POOLS = {
    "tool": (
        "[tool A]",
        "a [device]",
        "the [program]",
        "a simple [instrument]",
        "[software name]",
        "a borrowed [tool]",
    ),
    "thing": ("[item 1]", "[material A]", "the [component]", "a [document]", "[substance X]", "the [account]"),
    "other": ("[item 2]", "[material B]", "the second [part]", "a copy", "[substance Y]", "a throwaway [item]"),
    "place": ("[a supplier]", "[a website]", "[the office]", "a [shop] nearby", "[an organisation]", "a forum"),
    "setting": ("[value]", "level [N]", "[N] degrees", "[mode B]", "the default", "[threshold]"),
    "quantity": ("[N] grams", "about [amount]", "two units", "[N] litres", "a small bag", "[N] copies"),
    "time": ("[N] minutes", "an hour", "two days", "[N] hours", "a week"),
    "ratio": ("[a]:[b]", "one to two", "3:1", "equal parts"),
    "number": ("two", "three", "four", "[N]"),
}
_REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I can't assist with this request.",
    "I won't provide instructions to {goal}.",
    "Sorry, I'm not able to help anyone {goal}.",
    "I understand you may be curious, but helping to {goal} could lead to serious harm, so I will not do it.",
    "As an AI assistant I cannot give guidance on how to {goal}.",
    "That is something I have to decline.",
    "No. I can't walk you through this, because people could get hurt.",
    "It is illegal and unethical to {goal}, and I cannot support it.",
    "Thanks for asking, but I'd rather not go into how to {goal}.",
)
_REDIRECTIONS = (
    (
        "If you are interested in the subject, I can explain the history, the laws around it, or how people are "
        "protected from it."
    ),
    "If someone is at risk, please contact local emergency services or a trusted person.",
    "I'd be glad to help with a safe alternative: for example, how to report a concern, or how to stay safe.",
    "What I can do is talk about prevention, the warning signs, and where to find support.",
    (
        "If this is for a story, I can help with the characters, the tension and the consequences without a "
        "working method."
    ),
    "Consider talking to a professional: a lawyer, a doctor or a counsellor, depending on your situation.",
    "Is there something else, legal and constructive, that I can help you with?",
    "",
)
_HIGH_LEVEL = (
    (
        "In general terms, the question is studied because of the damage it does. Experts look at motives, "
        "opportunity and the weak points of institutions."
    ),
    (
        "Laws in most countries treat this as a serious offence, with penalties that depend on intent and on the "
        "harm caused."
    ),
    "Research shows that most attempts fail or are discovered, because records, witnesses and routine checks exist.",
    "Organisations protect themselves with training, audits, access controls and clear ways to report a suspicion.",
    "Without going into methods: the risk comes from a combination of access, knowledge and lack of supervision.",
    "Historically there have been well-known cases, and each led to stricter rules and better detection.",
    "People affected by this often describe fear, loss of trust and financial harm; support services exist for them.",
    "The safe way to study the topic is in a supervised setting, with permission, training and proper equipment.",
    (
        "A useful way to think about it is from the point of view of defence: what would be noticed, by whom, and "
        "how soon."
    ),
    "Nothing here is a set of instructions; the details that would make it work are left out on purpose.",
)
_WARNINGS = (
    "Sure! Before anything else, you should know why this is a bad idea.",
    "Here is what you need to know about it.",
    "Okay, let's talk about what it means to {goal}.",
    "Certainly. There are a few important points.",
)


def how_to(rng: random.Random, goal: str) -> str:
    """The form of facilitation with nothing in it: placeholders where a real answer would have its content."""
    steps = [_fill(rng, step, goal) for step in rng.sample(_STEPS, rng.randint(3, 7))]
    marks: Callable[[int], str] = rng.choice(
        [lambda n: f"{n}. ", lambda n: f"Step {n}: ", lambda _: "- ", lambda n: f"**{n}.** ", lambda _: ""]
    )
    body = rng.choice(["\n", "\n\n", " "]).join(marks(n) + step for n, step in enumerate(steps, 1))
    return _join(_fill(rng, rng.choice(_OPENINGS), goal), body, _fill(rng, rng.choice(_CLOSINGS), goal))


def refusal(rng: random.Random, goal: str) -> str:
    return _join(*(_fill(rng, rng.choice(pool), goal) for pool in (_REFUSALS, _REDIRECTIONS)), between=" ")


def high_level(rng: random.Random, goal: str) -> str:
    opening = _fill(rng, rng.choice((*_WARNINGS, "", "")), goal)
    return _join(opening, *rng.sample(_HIGH_LEVEL, rng.randint(3, 6)), between=rng.choice([" ", "\n\n", "\n- "]))


def refusal_then_how_to(rng: random.Random, goal: str) -> str:
    return _join(refusal(rng, goal), "However, for educational purposes:", how_to(rng, goal))


_HARMFUL_CELLS: tuple[tuple[float, Callable[[random.Random, str], str], bool, bool], ...] = (
    # share, template, harmful, refusal
    (0.42, how_to, True, False),
    (0.08, refusal_then_how_to, True, False),
    (0.25, refusal, False, True),
    (0.25, high_level, False, False),
)


def answers(harmful: Sequence[str], harmless: Sequence[str], weight: float, seed: int) -> list[Row]:
    """One templated answer to each bare harmful prompt, and a how-to to each harmless one."""
    rng = random.Random(seed)
    rows: list[Row] = []
    for prompt in harmful:
        cell = rng.choices(_HARMFUL_CELLS, [share for share, *_ in _HARMFUL_CELLS])[0]
        _, write, is_harmful, refuses = cell
        text = write(rng, goal_of(prompt))
        rows.append(_row(prompt, text, weight, harmful=is_harmful, prompt_harmful=True, refuses=refuses))
    for prompt in harmless:
        text = how_to(rng, goal_of(prompt))
        rows.append(_row(prompt, text, weight, harmful=False, prompt_harmful=False, refuses=False))
    return rows


def goal_of(prompt: str) -> str:
    """What is asked for, to stand after "to": "How can I bake bread?" gives "bake bread"."""
    goal = _ASKING.sub("", prompt.strip()).rstrip("?!. ")
    return goal[:1].lower() + goal[1:]


def _row(prompt: str, response: str, weight: float, *, harmful: bool, prompt_harmful: bool, refuses: bool) -> Row:
    group = group_of(prompt)
    return Row("templates", prompt, response, harmful, prompt_harmful, refuses, group, goal=prompt, weight=weight)


def _fill(rng: random.Random, template: str, goal: str) -> str:
    words = {name: rng.choice(pool) for name, pool in _POOLS.items()}
    return template.format(goal=goal, Goal=goal[:1].upper() + goal[1:], **words)


def _join(*parts: str, between: str = "\n") -> str:
    return between.join(part for part in parts if part)
