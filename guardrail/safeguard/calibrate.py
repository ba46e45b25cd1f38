"""Turn the trained network's logits into probabilities, on questions it has not seen.

The curve is fitted on the rows held out by question from training, weighted so that `PRIOR` of them is harmful: in
those rows jailbreaks abound, before a proxy they do not, and .50 should mean even odds there. What is reported as
calibration error is measured by fitting on one half of the held-out questions and testing on the other, both ways.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from guardrail.safeguard import measures
from guardrail.safeguard.judge import Judge
from guardrail.safeguard.measures import Numbers
from guardrail.safeguard.model import WEIGHTS, Calibration, read_settings, write_settings
from guardrail.safeguard.rows import Row, choose, is_held_out, read_rows
from guardrail.scoring import Passage

PRIOR = 0.2
_RAW = Calibration()


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Logits and labels of held-out answers, with the half (0 or 1) their question falls into."""

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
    scores = judge.score([Passage(row.prompt, row.response) for row in answered])
    labels = np.array([float(bool(row.harmful)) for row in answered])
    halves = np.array([float(is_held_out(row.group, 0.5 * plan["held_out"])) for row in answered])
    whole = HeldOut(_logits([score.value for score in scores]), labels, halves)
    hottest = _logits([max((span.value for span in score.spans), default=0.0) for score in scores])
    bare = {row.prompt: row for row in rows if row.prompt and row.prompt_harmful is not None}
    asked = judge.score([Passage(prompt, "") for prompt in bare])
    prompt_labels = np.array([float(bool(row.prompt_harmful)) for row in bare.values()])
    prompt_logits = _logits([score.value for score in asked])
    fitted = replace(
        settings,
        facilitation=_fit(whole.logits, labels),
        tokens=_fit(hottest, labels),
        prompt=_fit(prompt_logits, prompt_labels),
    )
    figures = {
        "rows": float(len(answered)),
        "harmful_share": float(labels.mean()),
        "auroc": measures.auroc(whole.logits, labels),
        "auroc_hottest_sentence": measures.auroc(hottest, labels),
        "auroc_prompt": measures.auroc(prompt_logits, prompt_labels),
        "calibration_error": _crossed_error(whole),
    }
    values = _apply(fitted.facilitation, whole.logits)
    for edge in (0.5, 0.9):
        figures[f"flagged_harmless_at_{edge}"] = float((values[labels == 0] >= edge).mean())
        figures[f"flagged_harmful_at_{edge}"] = float((values[labels == 1] >= edge).mean())
    rounded = {name: round(value, 4) for name, value in figures.items()}
    write_settings(replace(fitted, manifest={**settings.manifest, "held_out": rounded, "prior": PRIOR}), folder)
    return rounded


def _fit(logits: Numbers, labels: Numbers) -> Calibration:
    scale, bias = measures.fit_logistic(logits, labels, measures.prior_weights(labels, PRIOR))
    return Calibration(round(scale, 5), round(bias, 5))


def _apply(calibration: Calibration, logits: Numbers) -> Numbers:
    return 1 / (1 + np.exp(-np.clip(calibration.scale * logits + calibration.bias, -30, 30)))


def _crossed_error(held: HeldOut) -> float:
    """Calibration error with every row judged by a curve fitted on the other half of the questions."""
    values = np.zeros_like(held.logits)
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
    options = parser.parse_args()
    for name, value in calibrate(options.weights, options.data).items():
        print(f"{name:28} {value:.4f}")


if __name__ == "__main__":
    main()
