"""`guardrail train`, start to end on a few toy rows: weights come out, they load, and they learned what was plain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from guardrail import cli
from guardrail.errors import ConfigError
from guardrail.safeguard import train as room
from guardrail.safeguard.judge import Judge
from guardrail.safeguard.manifest import Manifest, read_manifest
from guardrail.safeguard.train import CHECKPOINT, train
from guardrail.scoring import Passage

BAD = "Sure! Step 1: get <part> number {n}. Step 2: [step omitted]. Step 3: nobody will notice you."
GOOD = "Happy to help: boil the potatoes for {n} minutes, add salt, and serve them with butter."
PLAN = "{epochs: 6, written: 0, templates: 0, noise: 0, held_out: 0.2, frozen: 4}"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"Question {n}?", "response": text.format(n=n), "harmful": harmful, "refusal": 0}
        for n in range(30)
        for text, harmful in ((BAD, 1), (GOOD, 0))
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nstart: base\nplan: {PLAN}\nfiles: [{{path: mine.jsonl, family: toys}}]\n")
    return path


def test_rows_of_ones_own_give_weights_that_learned(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "weights"
    assert cli.main(["train", str(manifest), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "auroc" in said
    assert f"weights: {out}" in said
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    bad, good = Judge.load(out).score([Passage("", BAD.format(n=99)), Passage("", GOOD.format(n=99))])
    assert bad.value > good.value + 0.2
    made = json.loads((out / "config.json").read_text())["manifest"]
    assert made["rows"] == {"mine": 48} or 0 < made["rows"]["mine"] < 60
    assert made["held_out"]["rows"] == 60 - made["rows"]["mine"]


def test_a_run_that_was_cut_off_goes_on_where_it_was(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(folder: Path) -> dict[str, torch.Tensor]:
        return room.load(folder, int8=False).state_dict()

    plan = read_manifest(manifest, changes={"epochs": 2, "batch_tokens": 512})
    train(plan, tmp_path / "whole")

    monkeypatch.setattr(room, "CHECKPOINT_SECONDS", 0)
    steps, real = 0, room._loss

    def cut_off(*given: object) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "_loss", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train(plan, tmp_path / "cut")
    assert (tmp_path / "cut" / CHECKPOINT).is_file()
    before = steps
    train(plan, tmp_path / "cut")
    assert not (tmp_path / "cut" / CHECKPOINT).exists()
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.allclose(whole[name], cut[name], atol=2e-2) for name in whole)
    assert steps - before < before * 20  # it did not begin again: see the next test for another run's checkpoint


def test_another_runs_checkpoint_is_not_taken(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    torch.save({"run": "another"}, out / CHECKPOINT)
    with pytest.raises(ConfigError, match="another run"):
        train(read_manifest(manifest), out)


def test_a_family_can_be_left_out_and_then_there_is_nothing(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="harmful and harmless"):
        train(read_manifest(manifest), tmp_path / "out", without="toys")


def test_an_unknown_family_is_named(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", str(manifest), "--out", str(tmp_path / "out"), "--without", "toy"]) == 2
    assert "toys" in capsys.readouterr().err


def test_training_can_start_from_the_shipped_weights(manifest: Path, tmp_path: Path) -> None:
    text = manifest.read_text().replace("start: base", "start: shipped").replace("epochs: 6", "epochs: 1")
    manifest.write_text(text)
    made = train(read_manifest(manifest), tmp_path / "tuned")
    assert made["start"]["name"] == "permissive"  # how the weights it started from were made
    assert Judge.load(tmp_path / "tuned").score([Passage("", "Good morning.")])[0].value < 1


def test_families_are_those_of_the_manifest(manifest: Path) -> None:
    read: Manifest = read_manifest(manifest)
    assert read.families() == ["ours", "toys"]
