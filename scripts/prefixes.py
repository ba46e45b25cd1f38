"""How early an answer gives itself away: `scripts/measure prefixes`.

Of the answers in a set that the safeguard flags as a whole, the share that it flags by the first so many characters
alone. Answers that are no longer than that are told apart: of them the prefix is all there is.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from guardrail.safeguard.dev import answer_cases, dev_rows
from guardrail.safeguard.judge import Judge
from guardrail.safeguard.samples import Case
from guardrail.scoring import Passage

SIZES = (60, 100, 200, 400)
BAND = 0.5
BATCH = 64


def measure(arguments: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(arguments.threads)
    judge = Judge.load()
    cases = answer_cases(dev_rows(arguments.data, arguments.most))
    random.Random(0).shuffle(cases)  # noqa: S311 - so that a batch has answers of many lengths
    flagged = [case for case, value in zip(cases, _values(judge, cases, None), strict=True) if value >= BAND]
    print(f"{len(cases)} answers, {len(flagged)} of them flagged as a whole (value >= {BAND})\n")
    print(
        "| first characters | answers longer than that | flagged by them alone | all answers | flagged |\n"
        + "|---" * 5
        + "|"
    )
    for size in SIZES:
        found = [value >= BAND for value in _values(judge, flagged, size)]
        longer = [hit for hit, case in zip(found, flagged, strict=True) if len(case.text) > size]
        share = f"{sum(longer) / len(longer):.1%}" if longer else "-"
        print(f"| {size} | {len(longer)} | {share} | {len(found)} | {sum(found) / len(found):.1%} |", flush=True)
    print("\n| source | flagged as a whole |" + "".join(f" by {size} |" for size in SIZES) + "\n" + "|---" * 6 + "|")
    for source in sorted({case.source for case in flagged}):
        part = [case for case in flagged if case.source == source]
        shares = [sum(value >= BAND for value in _values(judge, part, size)) / len(part) for size in SIZES]
        print(f"| {source} | {len(part)} |" + "".join(f" {share:.1%} |" for share in shares), flush=True)


def _values(judge: Judge, cases: Sequence[Case], size: int | None) -> list[float]:
    passages = [Passage(case.prompt, case.text[:size]) for case in cases]
    batches = [passages[at : at + BATCH] for at in range(0, len(passages), BATCH)]
    return [score.value for batch in batches for score in judge.score(batch)]


def add_arguments(parser: argparse.ArgumentParser, data: Path) -> None:
    parser.add_argument("--data", type=Path, default=data, help="folder with dev.jsonl.gz (default: %(default)s)")
    parser.add_argument("--most", type=int, default=400, help="answers of a source (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
