"""Turn the trained network's logits into probabilities, on questions it has not seen; `guardrail train` ends with it.

The curve is fitted on the rows held out by question from training. Every family of sources weighs the same in it, harm
amid harmless text as one more, and harmful answers together weigh `prior`: among those rows jailbreaks abound, before a
proxy they do not, and .50 should mean even odds there. What is reported as calibration error is measured by fitting on
one half of the held-out questions and testing on the other, both ways.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from guardrail.errors import ConfigError
from guardrail.safeguard import measures
from guardrail.safeguard.judge import Judge
from guardrail.safeguard.manifest import Manifest
from guardrail.safeguard.measures import Numbers
from guardrail.safeguard.model import Calibration, Settings, read_settings, write_settings
from guardrail.safeguard.rows import Row, is_held_out
from guardrail.safeguard.train import epoch_rows, read_texts
from guardrail.safeguard.written import CONTENTS
from guardrail.scoring import Passage

BURIED = "buried"
CONTENT_POSITIVES = 15
"""A kind of content with fewer held-out examples is not judged."""

_RAW = Calibration()


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Of n held-out answers: logits as in `Evidence`, shape (n, 4); labels; weights; which half its question is in."""

    logits: Numbers
    labels: Numbers
    weights: Numbers
    halves: Numbers


def held_out_rows(manifest: Manifest) -> list[Row]:
    """The rows whose questions were kept from training, without templates."""
    plan = manifest.plan
    rows = epoch_rows(read_texts(manifest), manifest, plan.seed)
    return [row for row in rows if row.source != "templates" and is_held_out(row.group, plan.held_out)]


def calibrate(folder: Path, manifest: Manifest) -> dict[str, float]:
    """Fit a curve for each head, write them into `config.json`, and give the figures of the held-out rows.

    A head of which the held-out rows know only one side keeps the curve it had. Raises `ConfigError` where that is so
    of harm itself.
    """
    settings = read_settings(folder)
    plan = manifest.plan
    rows = held_out_rows(manifest)
    judge = Judge.load(folder, settings=Settings(settings.shape))
    answered = [row for row in rows if row.response and row.harmful is not None]
    answered += _buried(answered, plan.seed)
    labels = np.array([float(bool(row.harmful)) for row in answered])
    if len(set(labels)) < 2:
        raise ConfigError("calibration needs harmful and harmless answers to held-out questions: raise held_out")
    halves = np.array([float(is_held_out(row.group, 0.5 * plan.held_out)) for row in answered])
    plans = judge.plan([Passage(row.prompt, row.response) for row in answered])
    weighed = judge.weigh(plans, judge.read_all(plans))
    logits = np.array([evidence.logits for evidence in weighed])
    families = [BURIED if row.source == BURIED else manifest.source(row.source).family for row in answered]
    weights = family_weights(families, labels, plan.prior)
    held = HeldOut(logits, labels, weights, halves)
    bare = {row.prompt: row for row in rows if row.prompt and row.prompt_harmful is not None}
    asked = _logits([score.value for score in judge.score([Passage(prompt, "") for prompt in bare])])
    ask_labels = np.array([float(bool(row.prompt_harmful)) for row in bare.values()])
    told = [at for at, row in enumerate(answered) if row.refusal is not None]
    refused = np.array([float(bool(answered[at].refusal)) for at in told])
    refusal_logits = np.array([weighed[at].refusal for at in told])
    fitted = replace(
        settings,
        facilitation=_fit(held.logits, labels, weights),
        tokens=_fit(held.logits[:, 1:2], labels, weights),
        prompt=_fit_known(asked, ask_labels, plan.prior) or settings.prompt,
        refusal=_fit_known(refusal_logits, refused, float(refused.mean()) if len(refused) else 0) or settings.refusal,
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
        "auroc_refusal": measures.auroc(refusal_logits, refused),
        "calibration_error": _crossed_error(held),
    }
    contents: dict[str, Calibration] = {}
    known = [at for at, row in enumerate(answered) if row.contents is not None or row.prompt_harmful is False]
    for kind, name in enumerate(CONTENTS):
        found = np.array([float(weighed[at].contents[kind]) for at in known])
        marked = np.array([float(name in (answered[at].contents or ())) for at in known])
        if marked.sum() >= CONTENT_POSITIVES:
            contents[name] = _fit_known(found, marked, plan.prior / 2) or _RAW
            figures[f"auroc_{name}"] = measures.auroc(found, marked)
    fitted = replace(fitted, contents=contents)
    for edge in (0.5, 0.9):
        figures[f"flagged_harmless_at_{edge}"] = float((values[(labels == 0) & ~buried] >= edge).mean())
        figures[f"flagged_harmful_at_{edge}"] = float((values[(labels == 1) & ~buried] >= edge).mean())
        figures[f"flagged_buried_at_{edge}"] = float((values[buried] >= edge).mean()) if buried.any() else math.nan
    rounded = {name: round(value, 4) for name, value in figures.items() if math.isfinite(value)}
    write_settings(replace(fitted, manifest={**settings.manifest, "held_out": rounded}), folder)
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


def family_weights(families: Sequence[str], labels: Numbers, prior: float) -> Numbers:
    """Each family with the same weight among the harmful and among the harmless rows; `prior` of all is harmful."""
    named = np.array(families)
    weights = np.zeros(len(labels))
    for label, mass in ((1.0, prior), (0.0, 1 - prior)):
        present = [family for family in sorted(set(families)) if ((named == family) & (labels == label)).any()]
        for family in present:
            here = (named == family) & (labels == label)
            weights[here] = mass / len(present) / here.sum()
    return np.asarray(weights * len(labels) / weights.sum())


def _fit_known(logits: Numbers, labels: Numbers, prior: float) -> Calibration | None:
    """A curve over one logit; None where only one label is known."""
    if len(set(labels)) < 2:
        return None
    return _fit(logits[:, None], labels, measures.prior_weights(labels, prior))


def _fit(logits: Numbers, labels: Numbers, weights: Numbers) -> Calibration:
    scales, bias = measures.fit_logistic(logits, labels, weights)
    whole, hottest, severity, compliance = (round(float(s), 5) for s in (*scales, 0.0, 0.0, 0.0)[:4])
    return Calibration(whole, round(bias, 5), hottest, severity, compliance)


def _apply(calibration: Calibration, logits: Numbers) -> Numbers:
    x = logits @ np.array(calibration.weights)[: logits.shape[1]] + calibration.bias
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -30, 30))))


def _crossed_error(held: HeldOut) -> float:
    """Calibration error with every row judged by a curve fitted on the other half of the questions."""
    values = np.zeros_like(held.labels)
    for half in (0.0, 1.0):
        here = held.halves == half
        if len(set(held.labels[~here])) < 2:
            return math.nan
        values[here] = _apply(_fit(held.logits[~here], held.labels[~here], held.weights[~here]), held.logits[here])
    return measures.calibration_error(values, held.labels, held.weights)


def _logits(values: Sequence[float]) -> Numbers:
    clipped = np.clip(np.array(values, dtype=np.float64), 1e-12, 1 - 1e-12)
    return np.asarray(np.log(clipped / (1 - clipped)))
