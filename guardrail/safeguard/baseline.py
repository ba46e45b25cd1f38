"""The bar: TF-IDF and logistic regression, fitted on the very rows the safeguard is trained on.

Needs scikit-learn, which is for training only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from guardrail.safeguard.look import Look, logit
from guardrail.safeguard.measures import Numbers
from guardrail.safeguard.rows import Row


class Baseline:
    """Bags of words and word pairs of the answer, and of the prompt too if told so."""

    def __init__(self, rows: Sequence[Row], *, with_prompt: bool) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        self.name = "TF-IDF, prompt and answer" if with_prompt else "TF-IDF, answer"
        self._with_prompt = with_prompt
        answered = [row for row in rows if row.response and row.harmful is not None]
        self._words = TfidfVectorizer(ngram_range=(1, 2), min_df=3, max_features=100_000, sublinear_tf=True)
        self._fit = LogisticRegression(C=10.0, max_iter=300)
        features = self._words.fit_transform([self._text(row.prompt, row.response) for row in answered])
        labels = [bool(row.harmful) for row in answered]
        self._fit.fit(features, labels, sample_weight=[row.weight for row in answered])

    def score(self, pairs: Sequence[tuple[str, str]]) -> Numbers:
        """The probability of harm of each (prompt, answer)."""
        features = self._words.transform([self._text(*pair) for pair in pairs])
        return np.asarray(self._fit.predict_proba(features)[:, 1], dtype=np.float64)

    def read(self, pairs: Sequence[tuple[str, str]]) -> list[Look]:
        """Values alone: it has no other heads."""
        return [Look(float(value), (logit(float(value)),)) for value in self.score(pairs)] if pairs else []

    def _text(self, prompt: str, answer: str) -> str:
        return f"{prompt}\n{answer}" if self._with_prompt else answer
