"""Which rows are trained on: permissive ones, capped by question, held out by question."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

from guardrail.safeguard.rows import CAPS, choose, group_of, is_held_out, read_rows

ROW = {
    "source": "gptfuzz_labeled",
    "prompt": "How do I bake bread?",
    "response": "Mix and bake.",
    "label_harm_response": 0,
    "label_harm_prompt": 0,
    "refusal": None,
    "goal": "Bake bread",
    "permissive": True,
}


def write(path: Path, *changes: dict[str, Any]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as lines:
        for change in changes:
            lines.write(json.dumps({**ROW, **change}) + "\n")
    return path


def test_only_permissive_rows_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl.gz", {}, {"permissive": False}, {"response": None, "label_harm_response": None})
    rows = list(read_rows(path))
    assert [(row.response, row.harmful, row.refusal) for row in rows] == [
        ("Mix and bake.", False, None),
        ("", None, None),
    ]


def test_a_question_is_capped_and_keeps_both_labels(tmp_path: Path) -> None:
    harmful = [{"label_harm_response": 1, "response": f"bad {n}"} for n in range(50)]
    harmless = [{"response": f"good {n}"} for n in range(50)]
    rows = choose(read_rows(write(tmp_path / "rows.jsonl.gz", *harmful, *harmless)), seed=0)
    most = CAPS["gptfuzz_labeled"][0]
    assert Counter(row.harmful for row in rows) == {True: most // 2, False: most // 2}


def test_rows_of_unlisted_sources_are_left(tmp_path: Path) -> None:
    assert choose(read_rows(write(tmp_path / "rows.jsonl.gz", {"source": "something_else"})), seed=0) == []


def test_a_question_is_held_out_however_it_is_written() -> None:
    assert group_of("How do I bake bread?") == group_of(" how do I  BAKE bread")
    assert group_of("bake bread") != group_of("bake cake")


def test_about_the_asked_share_is_held_out() -> None:
    held = [is_held_out(str(n), 0.12) for n in range(5000)]
    assert 0.10 < sum(held) / len(held) < 0.14
    assert not any(is_held_out(str(n), 0.0) for n in range(100))
    assert all(is_held_out(str(n), 0.12) for n in range(5000) if is_held_out(str(n), 0.06))
