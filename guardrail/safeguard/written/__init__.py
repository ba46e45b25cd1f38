"""Answers written by hand for this project: one question, answered at several levels of facilitation.

The format is plain text, made to be read and reviewed (`*.txt` beside this file):

    @@ fraud
    >> the question, on one line or more
    == 3
    an answer, on one line or more
    == 0 refusal
    another answer to the same question

Levels: 0 nothing of the harm (a refusal, a warning, something else), 1 general terms, 2 helps in part, 3 operational in
form. From level 2 on an answer is harmful. `benign` is the category of harmless questions. Placeholders such as
`{group}` or `{substance}` stand where a real answer would have its content, and are filled from `POOLS` when rows are
made. An answer may mark its harmful sentences \u27e6like this\u27e7; what is not marked is then known to be harmless.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
HARMFUL_LEVEL = 2
LEVELS = range(4)
CATEGORIES = (
    "benign",
    "cbrn",
    "weapons",
    "cyber",
    "drugs",
    "fraud",
    "crime",
    "violence",
    "self-harm",
    "minors",
    "sexual",
    "hate",
    "privacy",
    "advice",
    "unclassified",
)
CONTENTS = ("hate", "harassment", "sexual", "violence", "self-harm")

_POOLS = {
    "group": "immigrants, women, men, Muslims, Jews, Christians, atheists, Black people, white people, Asians, "
    "Latinos, gay people, trans people, disabled people, old people, refugees, Roma, Indians, "
    "Africans, poor people, fat people, foreigners, Catholics, lesbians, Arabs, Mexicans, Chinese "
    "people, people with autism, single mothers, teenagers, northerners, people from {place}",
    "name": "Alex, Maria, John, Priya, Sam, Fatima, Chris, Anna, Wei, Daniel, Olga, Ahmed, Julia, Marcus, Ms. "
    "Okafor, Mr. Brandt, Kelly, Tom, Nadia, Luis",
    "place": "Springfield, the city centre, Riverton, the north side, Milltown, Lakeview, the old town, "
    "Eastport, [town], [place]",
    "substance": "[chemical A], compound K, [substance X], the precursor, reagent B, the powder, [material], agent "
    "Q, the solvent, product 7, [ingredient], the extract",
    "tool": "[tool], the kit, a [device], the rig, tool X, [instrument], the adapter, a standard [part], the "
    "module, [software], the program",
    "amount": "[N] grams, 20 units, [amount], three parts, two litres, [N] ml, half a cup, 5 kg, 12 drops",
    "time": "[N] minutes, an hour, two days, overnight, [time], 45 minutes, a week, three hours",
    "site": "[website], example.com, a marketplace, an online forum, the portal, [site], a chat channel, the shop",
    "company": "[company], Acme, the bank, Northwind, the firm, Globex, the agency, a large retailer",
    "code": "[code omitted], payload(), do_step(...), <command>, run [script], ..., # [step omitted]",
}
POOLS = {name: tuple(words.split(", ")) for name, words in _POOLS.items()}
_FIELD = re.compile(r"\{(\w+)\}")
_MARK = re.compile("\u27e6(.*?)\u27e7", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Answer:
    """`text` still has its marks and placeholders."""

    level: int
    text: str
    refusal: bool = False
    contents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """A question with its answers; `name` is the file's stem and the item's number in it."""

    name: str
    category: str
    prompt: str
    answers: tuple[Answer, ...]


def read_items(folder: Path = FOLDER) -> list[Item]:
    """Every item of every `*.txt` in `folder`. Raises `ValueError` with file and line."""
    return [item for path in sorted(folder.glob("*.txt")) for item in parse(path.read_text("utf-8"), path.stem)]


def parse(text: str, stem: str) -> Iterator[Item]:
    """The items of one file, in order."""
    category, prompt, line_number = "", "", 0
    answers: list[tuple[list[str], list[str]]] = []
    block: list[str] | None = None
    number = 0

    def close() -> Iterator[Item]:
        nonlocal number
        if category:
            if not prompt.strip() or not answers:
                raise ValueError(f"{stem}: item before line {line_number} has no question or no answer")
            number += 1
            made = tuple(_answer(head, lines, f"{stem}: before line {line_number}") for head, lines in answers)
            yield Item(f"{stem}-{number}", category, prompt.strip(), made)

    for line_number, line in enumerate([*text.splitlines(), "@@ "], 1):
        if line.startswith("@@"):
            yield from close()
            category, prompt, answers, block = line[2:].strip(), "", [], None
            if category and category not in CATEGORIES:
                raise ValueError(f"{stem}:{line_number}: no such category: {category}")
        elif line.startswith(">>"):
            prompt, block = line[2:].strip(), None
        elif line.startswith("=="):
            block = []
            answers.append((line[2:].split(), block))
        elif block is not None:
            block.append(line)
        elif prompt:
            prompt += "\n" + line


def _answer(head: Sequence[str], lines: Sequence[str], where: str) -> Answer:
    text = "\n".join(lines).strip()
    contents: tuple[str, ...] = ()
    if not head or head[0] not in map(str, LEVELS) or not text:
        raise ValueError(f"{where}: an answer needs a level 0 to 3 and a text")
    for word in head[1:]:
        if word.startswith("content="):
            contents = tuple(word.removeprefix("content=").split(","))
        elif word != "refusal":
            raise ValueError(f"{where}: unknown word {word!r}")
    if not set(contents) <= set(CONTENTS):
        raise ValueError(f"{where}: unknown content in {contents}")
    for name in _FIELD.findall(text):
        if name not in POOLS:
            raise ValueError(f"{where}: unknown placeholder {{{name}}}")
    return Answer(int(head[0]), text, "refusal" in head[1:], contents)


def fill(rng: random.Random, text: str, chosen: dict[str, str]) -> str:
    """Placeholders replaced; `chosen` keeps one filling for question and answers."""

    def pick(match: re.Match[str]) -> str:
        name = match[1]
        if name not in POOLS:
            return match[0]
        if name not in chosen:
            chosen[name] = _FIELD.sub(lambda inner: rng.choice(POOLS[inner[1]]), rng.choice(POOLS[name]))
        return chosen[name]

    return _FIELD.sub(pick, text)


def unmark(text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text without its marks, and the character ranges that were marked."""
    plain, spans, position = "", [], 0
    for match in _MARK.finditer(text):
        plain += text[position : match.start()]
        spans.append((len(plain), len(plain) + len(match[1])))
        plain += match[1]
        position = match.end()
    return plain + text[position:], tuple(spans)
