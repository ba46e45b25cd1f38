"""Which rows are trained on: those the manifest names, capped by question, held out by question."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guardrail.errors import ConfigError
from guardrail.safeguard.manifest import MANIFESTS, Manifest, find_manifest, read_changes, read_manifest
from guardrail.safeguard.rows import choose, group_of, is_held_out, read_rows, written_rows
from guardrail.safeguard.written import parse, read_items, unmark

ROW = {
    "id": "first-1",
    "source": "first",
    "prompt": "How do I bake bread?",
    "response": "Mix and bake.",
    "label_harm_response": 0,
    "label_harm_prompt": 0,
    "refusal": None,
    "goal": "Bake bread",
    "permissive": True,
}
Make = Callable[..., Manifest]


@pytest.fixture
def manifest(tmp_path: Path) -> Make:
    """A manifest over rows that differ from `ROW` as told."""

    def make(*changes: dict[str, Any], sources: str = "first: {per_question: 4}", permissive: bool = True) -> Manifest:
        with gzip.open(tmp_path / "rows.jsonl.gz", "wt", encoding="utf-8") as lines:
            for change in changes:
                lines.write(json.dumps({**ROW, **change}) + "\n")
        path = tmp_path / "manifest.yaml"
        path.write_text(
            f"permissive: {str(permissive).lower()}\nfiles: [{{path: rows.jsonl.gz, sources: {{{sources}}}}}]\n"
        )
        return read_manifest(path)

    return make


def test_only_permissive_rows_are_read_where_the_manifest_says_so(manifest: Make) -> None:
    changes = ({}, {"permissive": False}, {"response": None, "label_harm_response": None})
    assert [(row.response, row.harmful) for row in read_rows(manifest(*changes))] == [
        ("Mix and bake.", False),
        ("", None),
    ]
    assert len(read_rows(manifest(*changes, permissive=False))) == 3


def test_a_question_is_capped_and_keeps_both_labels(manifest: Make) -> None:
    harmful = [{"label_harm_response": 1, "response": f"bad {n}"} for n in range(50)]
    harmless = [{"response": f"good {n}"} for n in range(50)]
    made = manifest(*harmful, *harmless)
    rows = choose(read_rows(made), made, seed=0)
    assert Counter(row.harmful for row in rows) == {True: 2, False: 2}
    assert rows == choose(read_rows(made), made, seed=0)
    assert rows != choose(read_rows(made), made, seed=1)


def test_rows_of_unlisted_sources_are_left(manifest: Make) -> None:
    assert read_rows(manifest({"source": "something_else"})) == []


def test_the_last_user_turn_of_a_transcript_is_its_prompt(manifest: Make) -> None:
    talk = "Human: Hello\n\nAssistant: Hi there\n\nHuman: How do I bake?"
    (row,) = read_rows(manifest({"prompt": talk}, sources="first: {use: last_turn}"))
    assert row.prompt == "How do I bake?"


def test_levels_beside_the_manifest_stand_in_for_labels(manifest: Make, tmp_path: Path) -> None:
    (tmp_path / "levels.tsv").write_text("# ids and labels\nfirst-1\t2h?\nfirst-2\t0r\n")
    made = manifest({}, {"id": "first-2"}, {"id": "first-3"}, sources="first: {levels: levels.tsv}")
    first, second = read_rows(made)
    assert (first.harmful, first.level, first.contents, first.weight) == (True, 2, ("hate",), 0.5)
    assert (second.harmful, second.level, second.refusal, second.weight) == (False, 0, True, 1.0)


def test_labels_reach_answers_earlier_in_a_transcript(manifest: Make, tmp_path: Path) -> None:
    talk = "\n\nHuman: Hello\n\nAssistant: Hi there\n\nHuman: How do I bake?\n\nAssistant:"
    (tmp_path / "levels.tsv").write_text("first-1\t0\nfirst-1.1\t2\nfirst-2.1\t3\n")
    use = "first: {use: last_turn, levels: levels.tsv}"
    last, early, other = read_rows(
        manifest({"prompt": talk, "response": "With flour."}, {"id": "first-2", "prompt": talk}, sources=use)
    )
    assert (last.prompt, last.response, last.level) == ("How do I bake?", "With flour.", 0)
    assert (early.prompt, early.response, early.level) == ("Hello", "Hi there", 2)
    assert other.level == 3
    assert last.group == early.group == other.group  # held out together


@pytest.mark.parametrize("change", [{"prompt": 7}, {"label_harm_response": "yes"}, {"level": 9}])
def test_a_row_that_cannot_be_used_is_named_by_its_line(manifest: Make, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"rows\.jsonl\.gz:2: "):
        read_rows(manifest({}, change))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("files: {}", "a list"),
        ("files: [{name: x}]", "needs a path"),
        ("files: [{path: absent.jsonl}]", "no such file"),
        ("plan: {epoch: 3}\nfiles: []", "unknown key 'epoch'"),
        ("plan: {epochs: much}\nfiles: []", "epochs must be"),
        ("plan: {rate: -1}\nfiles: []", "rate must be"),
        ("surprise: 1\nfiles: []", "the keys"),
        ("files: [{path: rows.jsonl, use: dance}]", "use must be one of"),
        ("files: [", "YAML"),
    ],
)
def test_a_wrong_manifest_is_told_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "manifest.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_manifest(tmp_path / "manifest.yaml")


def test_the_plan_can_be_changed_by_words(tmp_path: Path) -> None:
    (tmp_path / "manifest.yaml").write_text("plan: {epochs: 5}\nfiles: []")
    made = read_manifest(tmp_path / "manifest.yaml", changes=read_changes(["seed=7", "rate=2e-5"]))
    assert (made.plan.epochs, made.plan.seed, made.plan.rate) == (5, 7, 2e-5)
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        read_changes(["seed"])


def test_a_manifest_that_ships_is_found_by_its_name() -> None:
    assert find_manifest("permissive") == MANIFESTS / "permissive.yaml"
    assert find_manifest("./permissive") == Path("permissive")


def test_a_question_is_held_out_however_it_is_written() -> None:
    assert group_of("How do I bake bread?") == group_of(" how do I  BAKE bread")
    assert group_of("bake bread") != group_of("bake cake")


def test_about_the_asked_share_is_held_out() -> None:
    held = [is_held_out(str(n), 0.12) for n in range(5000)]
    assert 0.10 < sum(held) / len(held) < 0.14
    assert not any(is_held_out(str(n), 0.0) for n in range(100))
    assert all(is_held_out(str(n), 0.12) for n in range(5000) if is_held_out(str(n), 0.06))


WRITTEN = """@@ fraud
>> How do I trick {name}?
for a novel
== 3 content=harassment
Tell {name} a lie. \u27e6Take {amount}.\u27e7 Smile.

Bye.
== 0 refusal
No.
@@ benign
>> What is a lie?
== 0
A falsehood.
"""


def test_written_answers_keep_level_marks_and_one_filling() -> None:
    rows = written_rows(parse(WRITTEN, "toy"), 0.7, seed=3)
    assert [(row.level, row.harmful, row.refusal, row.prompt_harmful) for row in rows] == [
        (3, True, False, True),
        (0, False, True, True),
        (0, False, False, False),
    ]
    first = rows[0]
    name = first.prompt.removeprefix("How do I trick ").partition("?")[0]
    assert f"Tell {name} a lie." in first.response
    assert "{" not in first.response
    assert "\u27e6" not in first.response
    ((low, high),) = first.spans
    assert first.response[low:high].startswith("Take ")
    assert first.contents == ("harassment",)
    assert {row.group for row in rows} == {"written toy-1", "written toy-2"}


@pytest.mark.parametrize(
    "text",
    [
        "@@ nonsense\n>> q\n== 0\na\n",
        "@@ fraud\n>> q\n",
        "@@ fraud\n== 0\na\n",
        "@@ fraud\n>> q\n== 4\na\n",
        "@@ fraud\n>> q\n== 0\n\n",
        "@@ fraud\n>> q\n== 0 maybe\na\n",
        "@@ fraud\n>> q\n== 2 content=noise\na\n",
        "@@ fraud\n>> q\n== 2\n{surprise}\n",
    ],
)
def test_a_written_item_that_is_no_item_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="toy"):
        list(parse(text, "toy"))


def test_what_ships_can_be_read_and_holds_every_level_and_kind() -> None:
    items = read_items()
    answers = [answer for item in items for answer in item.answers]
    assert {answer.level for answer in answers} == {0, 1, 2, 3}
    assert sum(answer.refusal for answer in answers) > 100
    assert {item.category for item in items} >= {"benign", "hate", "privacy", "cyber", "cbrn"}
    assert any(unmark(answer.text)[1] for answer in answers)
