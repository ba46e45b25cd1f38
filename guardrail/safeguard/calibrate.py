"""Turn the trained network's logits into probabilities, on questions it has not seen.

The curve is fitted on the rows held out by question from training, weighted so that `PRIOR` of them is harmful: in
those rows jailbreaks abound, before a proxy they do not, and .50 should mean even odds there. What is reported as
calibration error is measured by fitting on one half of the held-out questions and testing on the other, both ways.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from guardrail.safeguard import measures
from guardrail.safeguard.judge import Judge
from guardrail.safeguard.measures import Numbers
from guardrail.safeguard.model import WEIGHTS, Calibration, read_settings, write_settings
from guardrail.safeguard.rows import Row, choose, is_held_out, read_rows
from guardrail.scoring import Passage

PRIOR = 0.2
BURIED = "buried"
_RAW = Calibration()


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Of held-out answers: logits of whole and hottest sentence, shape (n, 2), labels, and each question's half."""

    logits: Numbers
    labels: Numbers
    halves: Numbers


def held_out_rows(path: Path, share: float, seed: int) -> list[Row]:
    """Real rows (no templates) of the questions kept from training."""
    return [row for row in choose(read_rows(path), seed) if is_held_out(row.group, share)]


def calibrate(folder: Path, data: Path) -> dict[str, float]:
    """Fit all three curves, write them into `config.json`, and give the figures of the held-out rows."""
    settings = read_settings(folder)
    plan = settings.manifest["plan"]
    rows = held_out_rows(data, plan["held_out"], plan["seed"])
    raw = replace(settings, facilitation=_RAW, tokens=_RAW, prompt=_RAW)
    judge = Judge.load(folder, settings=raw, span_value=0.0)
    answered = [row for row in rows if row.response and row.harmful is not None]
    answered += _buried(answered, plan["seed"])
    labels = np.array([float(bool(row.harmful)) for row in answered])
    halves = np.array([float(is_held_out(row.group, 0.5 * plan["held_out"])) for row in answered])
    scores = judge.score([Passage(row.prompt, row.response) for row in answered])
    hottest = [max((span.value for span in score.spans), default=0.0) for score in scores]
    held = HeldOut(np.column_stack([_logits([s.value for s in scores]), _logits(hottest)]), labels, halves)
    bare = {row.prompt: row for row in rows if row.prompt and row.prompt_harmful is not None}
    asked = _logits([score.value for score in judge.score([Passage(prompt, "") for prompt in bare])])
    ask_labels = np.array([float(bool(row.prompt_harmful)) for row in bare.values()])
    fitted = replace(
        settings,
        facilitation=_fit(held.logits, labels),
        tokens=_fit(held.logits[:, 1:], labels),
        prompt=_fit(asked[:, None], ask_labels),
    )
    values = _apply(fitted.facilitation, held.logits)
    buried = np.array([row.source == BURIED for row in answered])
    figures = {
        "rows": float((~buried).sum()),
        "buried_rows": float(buried.sum()),
        "harmful_share": float(labels[~buried].mean()),
        "auroc": measures.auroc(values[~buried], labels[~buried]),
        "auroc_whole": measures.auroc(held.logits[~buried, 0], labels[~buried]),
        "auroc_hottest_sentence": measures.auroc(held.logits[~buried, 1], labels[~buried]),
        "auroc_prompt": measures.auroc(asked, ask_labels),
        "calibration_error": _crossed_error(held),
    }
    for edge in (0.5, 0.9):
        figures[f"flagged_harmless_at_{edge}"] = float((values[(labels == 0) & ~buried] >= edge).mean())
        figures[f"flagged_harmful_at_{edge}"] = float((values[(labels == 1) & ~buried] >= edge).mean())
        figures[f"flagged_buried_at_{edge}"] = float((values[buried] >= edge).mean())
    rounded = {name: round(value, 4) for name, value in figures.items()}
    write_settings(replace(fitted, manifest={**settings.manifest, "held_out": rounded, "prior": PRIOR}), folder)
    return rounded


def _buried(rows: Sequence[Row], seed: int) -> list[Row]:
    """Harmful answers in the middle of harmless ones, one for every four: harm may be a small part of a long answer."""
    rng = random.Random(seed)
    harmful = [row for row in rows if row.harmful]
    harmless = [row.response[:1500] for row in rows if row.prompt_harmful is False and len(row.response) > 500]
    if not harmless:
        return []
    return [
        replace(
            row, source=BURIED, response=f"{rng.choice(harmless)}\n\n{row.response[:800]}\n\n{rng.choice(harmless)}"
        )
        for row in rng.sample(harmful, len(harmful) // 4)
    ]


def _fit(logits: Numbers, labels: Numbers) -> Calibration:
    scales, bias = measures.fit_logistic(logits, labels, measures.prior_weights(labels, PRIOR))
    first, second = (*scales, 0.0)[:2]
    return Calibration(round(float(first), 5), round(bias, 5), round(float(second), 5))


def _apply(calibration: Calibration, logits: Numbers) -> Numbers:
    x = logits @ np.array([calibration.scale, calibration.hottest])[: logits.shape[1]] + calibration.bias
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -30, 30))))


def _crossed_error(held: HeldOut) -> float:
    """Calibration error with every row judged by a curve fitted on the other half of the questions."""
    values = np.zeros_like(held.labels)
    for half in (0.0, 1.0):
        here = held.halves == half
        values[here] = _apply(_fit(held.logits[~here], held.labels[~here]), held.logits[here])
    return measures.calibration_error(values, held.labels, measures.prior_weights(held.labels, PRIOR))


def _logits(values: Sequence[float]) -> Numbers:
    clipped = np.clip(np.array(values, dtype=np.float64), 1e-12, 1 - 1e-12)
    return np.asarray(np.log(clipped / (1 - clipped)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Calibrate trained weights on held-out questions.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/train.jsonl.gz"))
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, value in calibrate(options.weights, options.data).items():
        print(f"{name:28} {value:.4f}")


if __name__ == "__main__":
    main()
