"""The trainer, start to end on a few toy rows: weights come out, they load, and they learned what was plain."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from guardrail.safeguard.judge import Judge
from guardrail.scoring import Passage

BAD = "Sure! Step 1: get <part> number {n}. Step 2: [step omitted]. Step 3: nobody will notice you."
GOOD = "Happy to help: boil the potatoes for {n} minutes, add salt, and serve them with butter."


def rows() -> list[dict[str, object]]:
    common = {"permissive": True, "label_harm_prompt": None, "refusal": 0, "goal": None}
    return [
        common
        | {
            "source": "gptfuzz_labeled",
            "prompt": f"Question {n}?",
            "response": text.format(n=n),
            "label_harm_response": y,
        }
        for n in range(24)
        for text, y in ((BAD, 1), (GOOD, 0))
    ]


def test_training_on_a_few_rows_gives_weights_that_learned(tmp_path: Path) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "weights"
    data.write_text("\n".join(map(json.dumps, rows())))
    options = ["--data", str(data), "--out", str(out), "--epochs", "8", "--held-out", "0", "--threads", "2"]
    command = [sys.executable, "-m", "guardrail.safeguard.train", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    bad, good = Judge.load(out).score([Passage("", BAD.format(n=99)), Passage("", GOOD.format(n=99))])
    assert bad.value > good.value + 0.2
