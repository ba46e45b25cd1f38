"""How well the spans say where the harm is, on answers whose sentences were labelled one by one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guardrail.errors import ConfigError
from guardrail.safeguard import measures
from guardrail.safeguard.figures import Line, Table
from guardrail.safeguard.look import Look, Reader
from guardrail.safeguard.measures import Figure, Numbers
from guardrail.safeguard.samples import EDGES, auroc

FILE = "mixed_answers.jsonl"


@dataclass(frozen=True, slots=True)
class Mixed:
    """An answer with the character ranges of its sentences, and which of them are harmful."""

    prompt: str
    text: str
    ranges: tuple[tuple[int, int], ...]
    harmful: tuple[bool, ...]


def find_mixed(data: Path) -> Path | None:
    """The file beside the data, or in the tests of a checkout; the wheel has none."""
    checkout = Path(__file__).parents[2] / "tests" / "data"
    return next((folder / FILE for folder in (data, checkout) if (folder / FILE).is_file()), None)


def read_mixed(path: Path) -> list[Mixed]:
    """Sentences are joined by a space, but by a line end before one that starts a line or a list."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [_mixed(row["prompt"], [(one["text"], one["harmful"]) for one in row["sentences"]]) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not mixed answers: {type(error).__name__}") from None


def _mixed(prompt: str, sentences: Sequence[tuple[str, bool]]) -> Mixed:
    text, ranges = "", []
    for sentence, _ in sentences:
        joint = "" if not text else "\n" if "\n" in sentence or text[-1] not in ".!?\"')" else " "
        low = len(text) + len(joint)
        text += joint + sentence
        ranges.append((low, len(text)))
    return Mixed(prompt, text, tuple(ranges), tuple(bool(harmful) for _, harmful in sentences))


def sentence_values(mixed: Mixed, look: Look) -> Numbers:
    """Of each labelled sentence, the largest value of any span that overlaps it; 0 where none does."""
    return np.array(
        [
            max((span.value for span in look.spans if span.start < high and span.end > low), default=0.0)
            for low, high in mixed.ranges
        ]
    )


def measure_spans(answers: Sequence[Mixed], readers: Sequence[Reader]) -> Table:
    lines: dict[str, dict[str, Figure]] = {}
    counts: dict[str, int] = {}
    whose = np.array([str(at) for at, mixed in enumerate(answers) for _ in mixed.ranges])
    labels = np.array([float(harmful) for mixed in answers for harmful in mixed.harmful])
    by_sentence = measures.resample(whose.tolist())
    by_answer = measures.resample([str(at) for at in range(len(answers))])
    for reader in readers:
        looks = reader.read([(mixed.prompt, mixed.text) for mixed in answers])
        apart = [sentence_values(mixed, look) for mixed, look in zip(answers, looks, strict=True)]
        values = np.concatenate(apart)
        flags = (values >= EDGES[0]).astype(float)
        true = [np.array(mixed.harmful) for mixed in answers]
        said = [own >= EDGES[0] for own in apart]
        precision = np.array([float(t[s].mean()) if s.any() else np.nan for t, s in zip(true, said, strict=True)])
        recall = np.array([float(s[t].mean()) if t.any() else np.nan for t, s in zip(true, said, strict=True)])
        whole = np.array([look.value for look in looks])
        bad = np.array([float(t.any()) for t in true])
        figures = {
            "sentences: AUROC": (len(labels), auroc(values, labels, by_sentence)),
            "sentences: precision at .50": (int(flags.sum()), _mean(labels, by_sentence * flags)),
            "sentences: recall at .50": (int(labels.sum()), _mean(flags, by_sentence * labels)),
            "answers with a span: mean precision at .50": _where(precision, by_answer),
            "answers with harm: mean recall at .50": _where(recall, by_answer),
            "answers with harm: flagged as a whole at .50": _where(
                np.where(bad > 0, whole >= EDGES[0], np.nan), by_answer
            ),
            "answers without harm: flagged as a whole at .50": _where(
                np.where(bad > 0, np.nan, whole >= EDGES[0]), by_answer
            ),
        }
        for name, (rows, values) in figures.items():
            lines.setdefault(name, {})[reader.name] = measures.interval(values)
            counts.setdefault(name, rows)
    note = (
        "Answers with labelled sentences, written for this project. A sentence has the largest value of the spans that "
        "overlap it. Rows are counted by the first column's safeguard where they hang on what was flagged."
    )
    made = [Line("mixed answers", name, counts[name], cells) for name, cells in lines.items()]
    return Table("spans", "Spans", [reader.name for reader in readers], made, note)


def _mean(values: Numbers, weights: Numbers) -> Numbers:
    return measures.average(values, weights)


def _where(values: Numbers, weights: Numbers) -> tuple[int, Numbers]:
    """How many are numbers, and their mean in each resample."""
    here = np.isfinite(values)
    return int(here.sum()), measures.average(values[here], weights[:, here])
