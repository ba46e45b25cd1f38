"""Labelled rows for training: which may be used, how many of each question, and which are held out.

Only rows marked `permissive` are read. Jailbreak sources share their questions, so rows are held out by question
("group"), never one by one.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CAPS: dict[str, tuple[int, int]] = {
    # source: (most rows of one group, most rows in all)
    "gptfuzz_labeled": (30, 2200),
    "jbb_artifacts": (12, 1000),
    "past_tense": (10, 800),
    "refusal_direction_jbb": (10, 800),
    "codeattack": (4, 300),
    "refusal_direction_benign": (6, 600),
    "coconot_contrast_pref": (2, 1500),
    "benign_medquad": (1, 600),
    "benign_arena_hard": (1, 1000),
}
PROMPT_ONLY = (
    "prompts_advbench",
    "prompts_catqa",
    "prompts_harmfulqa",
    "prompts_jailbreakbench",
    "prompts_tdc2023",
    "cyberseceval_interpreter",
)
WEIGHTS = {"codeattack": 0.5}
"""Sources whose labels are weaker count less."""


@dataclass(frozen=True, slots=True)
class Row:
    """An answer (or, with an empty one, a prompt alone) with what is known of it; None is not known."""

    source: str
    prompt: str
    response: str
    harmful: bool | None
    prompt_harmful: bool | None
    refusal: bool | None
    group: str
    goal: str = ""
    weight: float = 1.0


def read_rows(path: Path) -> Iterator[Row]:
    """Every permissive row of a `.jsonl` or `.jsonl.gz` file, uncapped."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            raw: dict[str, Any] = json.loads(line)
            if raw["permissive"]:
                yield _row(raw)


def choose(rows: Iterable[Row], seed: int) -> list[Row]:
    """Rows for training under `CAPS`, harmful and harmless ones of a group in turn, and all prompt-only rows."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    chosen: list[Row] = []
    for row in rows:
        if row.source in CAPS and row.harmful is not None:
            groups[row.source, row.group].append(row)
        elif row.source in PROMPT_ONLY:
            chosen.append(row)
    rng = random.Random(seed)
    by_source: dict[str, list[Row]] = defaultdict(list)
    for (source, _), members in sorted(groups.items()):
        rng.shuffle(members)
        by_source[source].extend(_alternate(members)[: CAPS[source][0]])
    for source, members in sorted(by_source.items()):
        rng.shuffle(members)
        chosen.extend(members[: CAPS[source][1]])
    return chosen


def is_held_out(group: str, share: float) -> bool:
    """Whether a group is kept from training; the same for every run and machine."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big") < share * 2**32


def group_of(text: str) -> str:
    """The same for a question however it is cased, spaced or punctuated."""
    return " ".join("".join(c.lower() if c.isalnum() else " " for c in text).split())[:200]


def _row(raw: dict[str, Any]) -> Row:
    goal = raw.get("goal") or ""
    return Row(
        source=raw["source"],
        prompt=raw["prompt"] or "",
        response=raw["response"] or "",
        harmful=_flag(raw["label_harm_response"]),
        prompt_harmful=_flag(raw["label_harm_prompt"]),
        refusal=_flag(raw["refusal"]),
        group=group_of(goal or raw["prompt"] or ""),
        goal=goal,
        weight=WEIGHTS.get(raw["source"], 1.0),
    )


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)


def _alternate(rows: list[Row]) -> list[Row]:
    harmful = [row for row in rows if row.harmful]
    harmless = [row for row in rows if not row.harmful]
    pairs = [row for pair in zip(harmful, harmless, strict=False) for row in pair]
    return pairs + harmful[len(harmless) :] + harmless[len(harmful) :]
