"""How well the embedding finds the rule that a question falls under: measured on questions with a category.

Needs rows of the data's own categories, so it is for measuring; serving routes by `guardrail.decision.Routes`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from guardrail.compiled import route_rules
from guardrail.policy import UNCLASSIFIED, Policy, Tier
from guardrail.safeguard.figures import Line, Table
from guardrail.safeguard.measures import Figure, Numbers, average, interval, resample
from guardrail.scoring import Scorer

# What a source calls a category begins to say which rule it is; several ids where it is broader than one rule. The
# first key that a category's name contains counts, so the order matters.
RULES = {
    "Drug:": "drugs",
    "Weapon:": "weapons",
    "Weapon making": "weapons",
    "Cybercrime": "cyber",
    "Theft and Robbery": "crime",
    "Content Sexual exploitation": "minors",
    "Online predation": "minors",
    "Racial or ethnic hate": "hate",
    "Religious intolerance": "hate",
    "Gender-based": "hate",
    "Cyberbullying": "hate",
    "Malicious software": "cyber",
    "Trojans": "cyber",
    "Spyware": "cyber",
    "Ransomware": "cyber",
    "Adware": "cyber",
    "/ Self-harm": "self-harm",
    "Assault": "violence",
    "Terrorism": "violence",
    "Financial fraud": "fraud",
    "scams": "fraud",
    "Identity theft": "fraud",
    "Phishing": "fraud",
    "Scamming": "fraud",
    "Counterfeiting": "crime|fraud",
    "Pornography": "sexual",
    "Erotic": "sexual",
    "Nude": "sexual",
    "explicit dialogue": "sexual",
    "Political misinformation": "fraud",
    "Data theft": "cyber|privacy",
    "Surveillance": "privacy",
    "Doxxing": "privacy",
    "Tracking": "privacy",
    "Deepfake": "fraud|privacy",
    "Tailored Financial": "advice",
    "Human Trafficking": "crime|violence",
    "Intellectual property": "crime",
    "Malware/Hacking": "cyber",
    "Privacy": "privacy",
    "Disinformation": "fraud",
    "Fraud/Deception": "fraud|crime",
    "Harassment/Disc": "hate",
    "Sexual/Adult": "sexual|minors",
    "Expert advice": "advice",
    "Physical harm": "violence|weapons|self-harm|cbrn|crime",
    "Market manip": "fraud",
}
SOURCES = ("prompts_catqa", "prompts_jailbreakbench", "jbb_artifacts")
SHORT, SERVED, NEVER = (
    "definitions and examples",
    "with the list of violating cases",
    "without `unclassified`",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and the rules that would be right for it."""

    source: str
    prompt: str
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choices:
    """The rule chosen for each question, by each way of choosing; `SERVED` is the proxy's."""

    asked: Sequence[Asked]
    chosen: dict[str, Sequence[str]]
    prohibited: frozenset[str]

    def right(self, way: str) -> Numbers:
        return self._flags([rule in one.rules for one, rule in zip(self.asked, self.chosen[way], strict=True)])

    def unclassified(self, way: str) -> Numbers:
        return self._flags([rule == UNCLASSIFIED for rule in self.chosen[way]])

    def milder(self, way: str) -> Numbers:
        """Where every right rule is prohibited and the chosen one is not: other bands, hence perhaps another mode."""
        return self._flags(
            [
                self.prohibited.issuperset(one.rules) and rule not in self.prohibited
                for one, rule in zip(self.asked, self.chosen[way], strict=True)
            ]
        )

    def lost(self) -> Numbers:
        """Unclassified, though the nearest rule would have been right."""
        return self.unclassified(SERVED) * self.right(NEVER)

    def count(self, source: str) -> int:
        """Questions of `source`; all where it is empty."""
        return sum(not source or one.source == source for one in self.asked)

    def share(self, source: str, flags: Numbers) -> float:
        return self.figure(source, flags).value

    def figure(self, source: str, flags: Numbers) -> Figure:
        here = np.array([not source or one.source == source for one in self.asked])
        mine = flags[here]
        return interval(average(mine, resample([str(at) for at in range(len(mine))])))

    @staticmethod
    def _flags(values: Sequence[bool]) -> Numbers:
        return np.array(values, dtype=np.float64)


def read_asked(path: Path) -> list[Asked]:
    """Each question once, if its category begins to say which rule it is."""
    found: dict[tuple[str, str], Asked] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["source"] in SOURCES and row["category"] and row.get("label_harm_response") != 0:
                rules = next((rules for name, rules in RULES.items() if name in row["category"]), None)
                prompt = row.get("goal") or row["prompt"]
                if rules:
                    found.setdefault((row["source"], prompt), Asked(row["source"], prompt, tuple(rules.split("|"))))
    return list(found.values())


async def route(asked: Sequence[Asked], policy: Policy, scorer: Scorer) -> Choices:
    vectors = await scorer.embed([one.prompt for one in asked])
    short = replace(policy, rules=tuple(replace(rule, violates=()) for rule in policy.rules))
    served = await route_rules(policy, scorer)
    ways = {
        SHORT: (await route_rules(short, scorer), policy.minimum_similarity),
        SERVED: (served, policy.minimum_similarity),
        NEVER: (served, -1.0),
    }
    chosen = {way: [routes.nearest(vector, least) for vector in vectors] for way, (routes, least) in ways.items()}
    prohibited = frozenset(rule.id for rule in policy.rules if rule.tier is Tier.PROHIBITED)
    return Choices(asked, {way: list(rules) for way, rules in chosen.items()}, prohibited)


def routing_table(by_judge: dict[str, Choices]) -> Table:
    figures: dict[str, Callable[[Choices], Numbers]] = {
        f"right rule: {SHORT}": lambda one: one.right(SHORT),
        f"right rule, as served: {SERVED}": lambda one: one.right(SERVED),
        "unclassified": lambda one: one.unclassified(SERVED),
        "unclassified, though the nearest rule was right": Choices.lost,
        "prohibited by right, restricted by choice": lambda one: one.milder(SERVED),
    }
    lines = []
    for source in (*SOURCES, ""):
        for name, flags in figures.items():
            cells = {judge: one.figure(source, flags(one)) for judge, one in by_judge.items() if one.count(source)}
            rows = max((one.count(source) for one in by_judge.values()), default=0)
            if rows:
                lines.append(Line(source or "all", name, rows, cells))
    note = (
        "Questions alone, over the categories that map to a rule (several for a broad one), by the default policy. "
        "What is unclassified has the bands and words of `unclassified`, a restricted rule."
    )
    return Table("routing", "Routing to rules", list(by_judge), lines, note)
