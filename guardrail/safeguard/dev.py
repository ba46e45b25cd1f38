"""The dev set: it only compares models; no threshold, band or curve comes from it.

Every source measures another thing; docs of the data tell what its labels are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guardrail.safeguard import measures
from guardrail.safeguard.figures import Line, Table
from guardrail.safeguard.look import Judging, Look
from guardrail.safeguard.measures import Numbers
from guardrail.safeguard.rows import group_of
from guardrail.safeguard.samples import (
    EDGES,
    Case,
    Sample,
    auroc,
    best_f1,
    content,
    draw,
    f1,
    flagged,
    judge_cases,
    line,
    mean,
    read_raw,
    severity,
    shown_edge,
    unreadable,
    value,
)

ANSWERS = (
    "pyrit_objective_achieved",
    "pyrit_harm_severity",
    "pyrit_refusal",
    "xstest_completions",
    "openai_moderation",
)
PROMPTS = ("openai_moderation", "xstest_completions", "cyberseceval_frr", "coconot_prompts", "bio_overrefusal")
"""Sources whose prompts are judged on their own; of all but the first two, all that is labelled deserves an answer."""

HEADS = {"H": "hate", "HR": "harassment", "S": "sexual", "V": "violence", "SH": "self-harm"}
"""Categories of openai_moderation; sub-categories (S3, H2, V2) count as the one they refine."""

Raw = Mapping[str, Any]


def dev_rows(data: Path, most: int) -> dict[str, list[dict[str, Any]]]:
    found = read_raw(data / "dev.jsonl.gz", dict.fromkeys((*ANSWERS, *PROMPTS)))
    return {source: draw(rows, most, source) for source, rows in found.items()}


def answer_cases(rows: Mapping[str, Sequence[Raw]]) -> list[Case]:
    """A text that stands alone is judged as an answer to nothing."""
    cases = []
    for source in ANSWERS:
        for row in rows[source]:
            prompt, text = (row["prompt"] or "", row["response"]) if row["response"] else ("", row["prompt"])
            group = group_of(row["prompt"] or "") or group_of(text)
            cases.append(Case(source, prompt, text, group, row["label_harm_response"], raw=row))
    return cases


def measure_answers(sample: Sample) -> Table:
    parts = sample.split(lambda case: case.source)
    lines: list[Line] = []
    for source, measure in _MEASURES.items():
        if source in parts:
            lines += measure(source, parts[source])
    note = "Judged as answers. Where a head is named, it is measured in place of the value."
    return Table("dev", "Dev set: answers", list(sample.looks), [one for one in lines if one.rows], note)


def _objective(source: str, sample: Sample) -> list[Line]:
    known = sample.part(lambda case: case.label is not None)
    return [
        line(source, "AUROC, objective achieved", known, auroc),
        line(source, "F1 at .50", known, f1),
        line(source, "best F1 (optimistic)", known, best_f1),
    ]


def _severity(source: str, sample: Sample) -> list[Line]:
    known = sample.part(lambda case: case.raw["severity"] is not None)
    levels = [float(case.raw["severity"]) for case in known.cases]
    high = [float(level >= 0.5) for level in levels]
    lines = []
    for name, said in (("value", value), ("`severity`", severity)):
        lines += [
            line(source, f"Spearman with severity, by {name}", known, measures.spearmans, said, levels),
            line(source, f"mean absolute error, by {name}", known, _absolute_error, said, levels),
            line(source, f"AUROC of severity from .5 on, by {name}", known, auroc, said, high),
        ]
    return lines


def _refusals(source: str, sample: Sample) -> list[Line]:
    known = sample.part(lambda case: case.raw["refusal"] is not None)
    refused = [float(case.raw["refusal"]) for case in known.cases]
    complied = [1 - label for label in refused]
    return [
        line(source, "AUROC of not refusing, by value", known, auroc, value, complied),
        line(source, "AUROC of refusing, by `refusal`", known, auroc, refusal, refused),
        line(source, "F1 of refusing at .50, by `refusal`", known, f1, refusal, refused),
    ]


def _xstest(source: str, sample: Sample) -> list[Line]:
    safe = sample.part(lambda case: case.raw["label_harm_prompt"] == 0)
    refused = sample.part(lambda case: case.raw["label_harm_prompt"] == 1 and case.raw["refusal"] == 1)
    # answers to unsafe prompts that do not refuse have no label of their own
    mixed = sample.part(lambda case: case.label == 0 or case.raw["refusal"] == 0)
    complied = [float(case.label is None) for case in mixed.cases]
    return [
        *(line(source, f"safe prompts: flagged at {shown_edge(edge)}", safe, flagged(edge)) for edge in EDGES),
        line(source, "safe prompts: called unreadable", safe, mean, unreadable),
        *(
            line(source, f"refusals of unsafe prompts: flagged at {shown_edge(edge)}", refused, flagged(edge))
            for edge in EDGES
        ),
        line(source, "AUROC, unrefused unsafe against harmless", mixed, auroc, value, complied),
        line(source, "F1 at .50, unrefused unsafe against harmless", mixed, f1, value, complied),
        *_refusals(source, sample),
    ]


def _moderation(source: str, sample: Sample) -> list[Line]:
    harmful = [float(case.raw["label_harm_prompt"]) for case in sample.cases]
    lines = [
        line(source, "AUROC, any category", sample, auroc, value, harmful),
        line(source, "F1 at .50, any category", sample, f1, value, harmful),
        line(source, "best F1, any category (optimistic)", sample, best_f1, value, harmful),
        line(source, "AUROC, any category, by the highest content head", sample, auroc, _any_content, harmful),
    ]
    for category, head in HEADS.items():
        marked = [float(category in _categories(case.raw)) for case in sample.cases]
        if any(marked):
            count = f"{category} ({sum(marked):.0f})"
            lines.append(line(source, f"AUROC, {count}, by `{head}`", sample, auroc, content(head), marked))
            lines.append(line(source, f"AUROC, {count}, by value", sample, auroc, value, marked))
    return lines


_MEASURES = {
    "pyrit_objective_achieved": _objective,
    "pyrit_harm_severity": _severity,
    "pyrit_refusal": _refusals,
    "xstest_completions": _xstest,
    "openai_moderation": _moderation,
}


def measure_prompts(rows: Mapping[str, Sequence[Raw]], judges: Sequence[Judging]) -> Table:
    """The prompt head: AUROC where both kinds exist, and the share of prompts that deserve an answer it would touch."""
    lines: list[Line] = []
    for source in PROMPTS:
        labels = {row["prompt"]: row["label_harm_prompt"] for row in rows[source] if row["prompt"]}
        cases = [
            Case(source, prompt, "", group_of(prompt), label) for prompt, label in labels.items() if label is not None
        ]
        sample = judge_cases(cases, judges)
        if sample.labels.any():
            lines += [line(source, "AUROC", sample, auroc), line(source, "F1 at .50", sample, f1)]
        safe = sample.part(lambda case: case.label == 0)
        lines += [line(source, f"safe prompts: flagged at {shown_edge(edge)}", safe, flagged(edge)) for edge in EDGES]
    note = "Prompts alone, by the head that `prompt: observe` and `enforce` read."
    return Table("prompts", "Dev set: prompts", [j.name for j in judges], [one for one in lines if one.rows], note)


def refusal(look: Look) -> float | None:
    return look.refusal


def _any_content(look: Look) -> float | None:
    return None if look.contents is None else max(look.contents)


def _categories(row: Raw) -> set[str]:
    """Without the digits of sub-categories."""
    return {str(name).rstrip("0123456789") for name in row["category"] or ()}


def _absolute_error(values: Numbers, labels: Numbers, weights: Numbers) -> Numbers:
    return measures.average(np.abs(values - labels), weights)
