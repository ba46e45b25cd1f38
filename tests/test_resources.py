from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
import yaml

from guardrail.errors import ConfigError
from guardrail.resources import MOST, Resources, load, render

POLICIES = Path(__file__).parents[1] / "policies"
RESOURCES = load(POLICIES / "resources.yaml")
CHECKED = date(2026, 11, 21)
LANGUAGES = ("en", "es", "fr", "de", "pt", "hi", "zh", "ja", "ar")


def policy_needs() -> set[str]:
    front = (POLICIES / "default.md").read_text(encoding="utf-8").split("---\n")[1]
    return {need for rule in yaml.safe_load(front)["rules"] for need in rule["crisis"]}


def contacts(region: str | None, needs: list[str]) -> list[str]:
    return [row.contact for row in RESOURCES.find(region, needs)]


# The file.


def test_every_confirmed_row_is_there_once() -> None:
    assert len(RESOURCES.rows) == len(set(RESOURCES.rows)) == 102


def test_no_replaced_number_is_there() -> None:
    closed = ["1-800-273-8255", "800-931-2237", "08457 90 90 90", "0800 77 66 00", "155260", "0900-0113", "1899-0893"]
    shown = "\n".join(map(str, RESOURCES.rows))
    assert [number for number in closed if number in shown] == []


@pytest.mark.parametrize(("today", "old"), [(CHECKED, 0), (date(2027, 5, 20), 0), (date(2027, 5, 21), 102)])
def test_a_row_is_stale_after_180_days(today: date, old: int) -> None:
    assert len(RESOURCES.stale(today)) == old


# Finding: region, needs in order -> contacts.
FOUND = [
    # the region's own rows
    ("US", ["suicide"], ["988 (call or text); chat 988lifeline.org"]),
    ("us", ["emergency"], ["911"]),
    ("UK", ["emergency"], ["999"]),
    # the best of every need before the second best of any
    ("GB", ["suicide", "emergency"], ["116 123; samaritans.org", "999", "111, mental health option (2)"]),
    ("JP", ["emergency", "suicide"], ["110", "mhlw.go.jp/mamorouyokokoro", "0120-783-556"]),
    # a row that serves two needs is named once
    ("AU", ["drugs", "alcohol"], ["1800 250 015"]),
    # a member state without an emergency row of its own; one with; a neighbour that is none
    ("ES", ["emergency"], ["112"]),
    ("NL", ["emergency"], ["112"]),
    ("PL", ["emergency"], ["112"]),
    ("EL", ["emergency"], ["112"]),
    ("NO", ["emergency"], []),
    # no row: those that serve anywhere, if there are any
    ("ES", ["suicide", "emergency"], ["befrienders.org", "112"]),
    ("KR", ["suicide"], ["befrienders.org"]),
    (None, ["suicide", "eating-disorders", "emergency"], ["befrienders.org"]),
    (None, ["csam-report", "stop-offending"], ["inhope.org", "troubled-desire.com"]),
    ("nowhere", ["poison"], []),
    # nothing needed
    ("US", [], []),
]


@pytest.mark.parametrize(("region", "needs", "expected"), FOUND)
def test_find(region: str | None, needs: list[str], expected: list[str]) -> None:
    assert contacts(region, needs) == expected


@pytest.mark.parametrize("region", sorted({row.region for row in RESOURCES.rows}))
def test_never_more_than_fit_and_never_from_another_country(region: str) -> None:
    found = RESOURCES.find(region, list(RESOURCES.needs))
    assert 0 < len(found) <= MOST
    assert {row.region for row in found} <= {region, "EU", "INT"}


def test_an_unknown_need_is_an_error() -> None:
    with pytest.raises(ConfigError, match="unknown need 'suicid'"):
        RESOURCES.find("US", ["suicid"])


@pytest.mark.parametrize("need", sorted(policy_needs()))
def test_every_need_of_the_default_policy_is_met_everywhere(need: str) -> None:
    found = RESOURCES.find(None, [need])
    assert bool(found) == (RESOURCES.needs[need] == "directory")
    assert render(RESOURCES, found).startswith("If you or someone else is in immediate danger")


# Rendering: language chooses the words, never the row.


def test_render() -> None:
    assert render(RESOURCES, RESOURCES.find("GB", ["suicide", "emergency"]), "en-GB") == (
        "If you or someone else is in immediate danger, call your local emergency number.\n"
        "\n"
        "You can reach:\n"
        "- Samaritans: 116 123; samaritans.org\n"
        "- Emergency: 999\n"
        "- NHS urgent mental health, England (similar in Scotland and Wales): 111, mental health option (2)"
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_another_language_has_the_same_rows(language: str) -> None:
    found = RESOURCES.find("FR", ["suicide", "emergency"])
    text = render(RESOURCES, found, language)
    assert text.split("\n")[3:] == render(RESOURCES, found, "en").split("\n")[3:]
    assert text.split("\n")[0] == RESOURCES.wording[language].emergency


@pytest.mark.parametrize(
    ("tag", "same_as"), [("pt-BR", "pt"), ("zh_Hant", "zh"), ("DE", "de"), ("tlh", "en"), ("", "en")]
)
def test_language_tags(tag: str, same_as: str) -> None:
    assert render(RESOURCES, (), tag) == RESOURCES.wording[same_as].emergency


@pytest.mark.parametrize(
    "remark",
    ["no national page", "per tf1info", "kept by the BVL", "serves professionals only", "was Action Fraud", "since"],
)
def test_our_own_remarks_are_not_shown(remark: str) -> None:
    assert [str(row) for row in RESOURCES.rows if remark in str(row)] == []


# Reading: what is wrong with the file -> what the message names.
GOOD = """
needs: {suicide: {means: despair, fallback: directory}}
eu: [DE]
wording: {en: {emergency: Call., introduction: "Reach:"}}
resources:
  - {region: INT, need: [suicide], name: A, contact: a.org, source: a.org, checked: 2026-11-21, page: undated}
"""
WRONG = [
    (GOOD, "needs: [suicide", "while parsing"),
    ("fallback: directory", "fallback: directry", "needs.suicide.fallback: 'directry'"),
    ("region: INT", "region: DE", "needs.suicide: the fallback is `directory`"),
    ("need: [suicide]", "need: [poison]", r"resources\[0\].need: unknown poison"),
    ("need: [suicide]", "need: []", r"resources\[0\].need: not a list"),
    ("contact: a.org", "contact: 112", r"resources\[0\].contact: not text"),
    ("eu: [DE]", "eu: [NO]", r"eu\[0\]: not text"),
    ("checked: 2026-11-21", "checked: lately", r"resources\[0\].checked: not a date"),
    ("checked: 2026-11-21", "checked: 2026-11-21 10:00:00", r"resources\[0\].checked: not a date"),
    ("page: undated", "pages: undated", r"resources\[0\]: missing page"),
    ("page: undated", "page: undated, phone: x", r"resources\[0\]: unknown phone"),
    ("wording: {en:", "wording: {fr:", "wording: `en` is missing"),
    ("eu: [DE]", "", "the file: missing eu"),
    (GOOD, "- 1", "the file: not a mapping"),
]


def read(tmp_path: Path, text: str) -> Resources:
    path = tmp_path / "resources.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def test_the_smallest_good_file(tmp_path: Path) -> None:
    assert [str(row) for row in read(tmp_path, GOOD).find("DE", ["suicide"])] == ["A: a.org"]


@pytest.mark.parametrize(("old", "new", "message"), WRONG)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, text)
    assert "resources.yaml" in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no-such\.yaml"):
        load(tmp_path / "no-such.yaml")
