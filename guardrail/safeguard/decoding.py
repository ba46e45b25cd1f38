"""What a text says once it is decoded: every encoded run is replaced, where it stands, by what it stands for.

So one further reading is enough, however many runs there are, and each keeps its surroundings. An edit is made only
where English comes out, or clean text out of an encoding that hardly yields any by chance; a wrong guess costs a
reading and decides nothing, for the text as it stands is read too. Twice over, for what was encoded twice. Pure,
linear in the text, and at most half as long again.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from string import ascii_lowercase
from typing import NamedTuple

from guardrail.safeguard.readable import find_words

DEPTH = 2
"""How often what was decoded is decoded again."""


class Edit(NamedTuple):
    """Characters `[start, end)` of one text have become `[low, high)` of the next."""

    start: int
    end: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Decoded:
    """`steps` are the edits that led to `text`, each step's in order; none where there was nothing to decode."""

    text: str
    steps: tuple[tuple[Edit, ...], ...] = ()

    def find(self, position: int) -> int:
        """Where a character of the original is now; of an encoded run, its beginning."""
        for edits in self.steps:
            index = bisect_right(edits, position, key=lambda edit: edit.start) - 1
            if index >= 0:
                edit = edits[index]
                position = edit.low if position < edit.end else position + edit.high - edit.end
        return position

    def find_origin(self, low: int, high: int) -> tuple[int, int]:
        """The range of the original that `[low, high)` of the text came from, encoded runs whole."""
        for edits in reversed(self.steps):
            low, high = _go_back(edits, low)[0], _go_back(edits, high - 1)[1]
        return low, high


def _go_back(edits: Sequence[Edit], position: int) -> tuple[int, int]:
    """The range that one character came from."""
    index = bisect_right(edits, position, key=lambda edit: edit.low) - 1
    if index < 0:
        return position, position + 1
    edit = edits[index]
    if position < edit.high:
        return edit.start, edit.end
    position += edit.end - edit.high
    return position, position + 1


def decode(text: str, vocabulary: frozenset[str]) -> Decoded:
    decoded = Decoded(text)
    for _ in range(DEPTH):
        found = _find_edits(decoded.text, vocabulary)
        if not found:
            break
        decoded = _apply(decoded, found)
    return decoded


class _Found(NamedTuple):
    start: int
    end: int
    text: str


Finder = Callable[[str, frozenset[str]], Iterator[_Found]]


def _apply(decoded: Decoded, found: Sequence[_Found]) -> Decoded:
    pieces, edits, position, length = [], [], 0, 0
    for start, end, new in found:
        pieces += [decoded.text[position:start], new]
        low = length + start - position
        length, position = low + len(new), end
        edits.append(Edit(start, end, low, length))
    return Decoded("".join([*pieces, decoded.text[position:]]), (*decoded.steps, tuple(edits)))


def _find_edits(text: str, vocabulary: frozenset[str]) -> list[_Found]:
    """In order, none overlapping another: of two the one whose finder comes first."""
    kept: list[_Found] = []
    for find in _FINDERS:
        taken = frozenset(kept)
        merged: list[_Found] = []
        for found in sorted([*kept, *find(text, vocabulary)], key=lambda one: one.start):
            # Neither list overlaps itself, so a newcomer can only meet its neighbours.
            if not merged or found.start >= merged[-1].end:
                merged.append(found)
            elif found in taken:
                while merged and merged[-1].end > found.start:
                    merged.pop()
                merged.append(found)
        kept = merged
    return kept


# Runs in an encoding of bytes

_HEX = re.compile(
    r"(?<![0-9A-Za-z])(?:\\x|0x)?[0-9A-Fa-f]{2}(?:[\s:,]{0,2}(?:\\x|0x)?[0-9A-Fa-f]{2}){5,}(?![0-9A-Za-z])"
)
_BINARY = re.compile(r"(?<![0-9A-Za-z])[01]{8}(?:[\s,]{0,2}[01]{8}){4,}(?![0-9A-Za-z])")
_PERCENT = re.compile(r"(?:%[0-9A-Fa-f]{2})++")
_UNICODE = re.compile(r"(?:\\u(?:[0-9A-Fa-f]{4}|\{[0-9A-Fa-f]{1,6}\})){2,}+")
_ENTITIES = re.compile(r"(?:&#(?:[0-9]{1,7}|[xX][0-9A-Fa-f]{1,6});[ ]?){2,}+")
_TAGS = re.compile("[\U000e0020-\U000e007e]{4,}")
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/_-]{40,}+\r?\n[ \t>]{0,8})++[A-Za-z0-9+/_-]*+={0,2}|[A-Za-z0-9+/_-]{12,}+={0,2}")
_FEWEST_PERCENT = 4
_LONG_ENOUGH = 16  # in characters: so much clean text comes out of no random bytes


def _read_hex(run: str) -> str:
    return _as_text(bytes.fromhex(re.sub(r"\\x|0x|[\s:,]", "", run)))


def _read_binary(run: str) -> str:
    digits = re.sub(r"[\s,]", "", run)
    return _as_text(bytes(int(digits[at : at + 8], 2) for at in range(0, len(digits), 8)))


def _read_percent(run: str) -> str:
    return _as_text(bytes.fromhex(run.replace("%", "")))


def _read_unicode(run: str) -> str:
    units = [int(unit.strip("{}"), 16) for unit in run.split("\\u")[1:]]
    return _printable("".join(chr(unit) for unit in units if unit <= 0x10FFFF))


def _read_entities(run: str) -> str:
    return _printable(html.unescape(run))


def _read_tags(run: str) -> str:
    return "".join(chr(ord(letter) - 0xE0000) for letter in run)


def _read_base64(run: str) -> str:
    letters = re.sub(r"[\s>=]", "", run).translate({ord("-"): "+", ord("_"): "/"})
    # A run that was cut, or that stands behind other letters, begins anywhere in a group of four.
    for skip in range(4 if len(letters) >= 24 else 1):
        whole = letters[skip : skip + (len(letters) - skip) // 4 * 4]
        rest = letters[skip + len(whole) :]
        padded = whole + (rest + "=" * (4 - len(rest)) if len(rest) > 1 else "")
        try:
            said = _as_text(base64.b64decode(padded))
        except (binascii.Error, ValueError):
            continue
        if said:
            return said
    return ""


def _as_text(said: bytes) -> str:
    """The bytes as text, or nothing if they are no text. A character cut at either end is left out."""
    if said[1::2].count(0) > len(said) / 3:
        return _printable(said.decode("utf-16-le", "ignore"))
    for cut in range(4):
        try:
            return _printable(said[cut:].decode())
        except UnicodeDecodeError as error:
            if error.start and error.start >= len(said) - cut - 3:
                return _printable(said[cut : cut + error.start].decode())
    return ""


def _printable(text: str) -> str:
    """The text if it is one."""
    strange = sum(1 for letter in text if not letter.isprintable() and letter not in "\r\n\t")
    return "" if strange > len(text) / 50 else text


def _finds_runs(pattern: re.Pattern[str], read: Callable[[str], str], *, sure: bool = False) -> Finder:
    def find(text: str, vocabulary: frozenset[str]) -> Iterator[_Found]:
        for match in pattern.finditer(text):
            said = read(match[0])
            if said and (sure or _is_text(said, vocabulary)):
                yield _Found(*match.span(), said)

    return find


def _find_percent(text: str, vocabulary: frozenset[str]) -> Iterator[_Found]:
    """Not in links with a blank or two."""
    if len(re.findall(r"%[0-9A-Fa-f]{2}", text)) >= _FEWEST_PERCENT:
        yield from _finds_runs(_PERCENT, _read_percent, sure=True)(text, vocabulary)


def _is_text(said: str, vocabulary: frozenset[str]) -> bool:
    """Whether letters came out and not only characters."""
    if sum(1 for letter in said if letter.isalnum() or letter == " ") < 0.6 * len(said):
        return False
    return len(said) >= _LONG_ENOUGH or (len(said) >= 4 and _share_known(said, vocabulary) >= 0.75)


# Letters apart: "h o w", "h.o.w", a letter a line

_SPACED = re.compile(r"(?<![^\W_])[^\W_](?:[ \t\n.\-*|/,_·•~+]{1,3}[^\W_](?![^\W_])){4,}+")
_GAP = re.compile(r"[^\w]+|_+")


def _find_spaced(text: str, vocabulary: frozenset[str]) -> Iterator[_Found]:
    for match in _SPACED.finditer(text):
        letters, gaps = _GAP.sub("", match[0]).lower(), _GAP.findall(match[0])
        if sum(map(str.isalpha, letters)) < 5:
            continue
        usual = min(map(len, gaps))
        # Wider gaps stand between words, if anything does.
        cuts = [0, *(at for at, gap in enumerate(gaps, 1) if len(gap) > usual), len(letters)]
        words = [letters[low:high].translate(_LEET[0]) for low, high in pairwise(cuts)]
        if not _are_words(words, vocabulary):
            words = [word for part in words for word in _split(part, vocabulary)]
        if _are_words(words, vocabulary):
            yield _Found(*match.span(), " ".join(words))


_LONGEST_WORD = 18


def _split(letters: str, vocabulary: frozenset[str]) -> list[str]:
    """Letters without blanks, cut into words; long words win. What is in none of them stays together."""
    best = [0] * (len(letters) + 1)  # the squares of word lengths, up to each letter
    last = [1] * (len(letters) + 1)
    for end in range(1, len(letters) + 1):
        best[end] = best[end - 1] - 1
        for size in range(1, min(_LONGEST_WORD, end) + 1):
            if best[end - size] + size * size > best[end] and letters[end - size : end] in vocabulary:
                best[end], last[end] = best[end - size] + size * size, size
    words: list[str] = []
    at = end = len(letters)
    while at:
        if letters[at - last[at] : at] in vocabulary:
            words += [letters[at:end], letters[at - last[at] : at]]
            end = at - last[at]
        at -= last[at]
    return [word for word in reversed([*words, letters[:end]]) if word]


def _are_words(words: Sequence[str], vocabulary: frozenset[str]) -> bool:
    """Whether most of the letters are in words, and those not all of one or two letters."""
    known = [word for word in words if word in vocabulary]
    covered = sum(map(len, known))
    return covered >= 0.85 * sum(map(len, words)) and covered >= 2.2 * len(known)


# Words in disguise: letters of other alphabets, invisible ones, digits for letters

# Lower case; what NFKC does not already turn into Latin (Unicode TR 39, confusables.txt, those that fonts draw alike).
_PAIRS = (
    "аa вb еe ѕs іi јj кk мm нh оo рp сc тt уy хx үy һh ԁd ԛq ԝw ӏl ьb гr пn ѵv "  # noqa: RUF001
    "αa βb γy εe ηn ιi κk μu νv οo ρp τt υu χx ωw ϲc ϳj "  # noqa: RUF001
    "ᴀa ʙb ᴄc ᴅd ᴇe ꜰf ɢg ʜh ɪi ᴊj ᴋk ʟl ᴍm ɴn ᴏo ᴘp ʀr ꜱs ᴛt ᴜu ᴠv ᴡw ʏy ᴢz ɑa ɡg ıi øo đd łl ħh"  # noqa: RUF001
)
_LOOKALIKES = {ord(one): latin for one, latin in map(tuple, _PAIRS.split())}
_BOXED = {start + at: letter for start in (0x1F150, 0x1F170, 0x1F1E6) for at, letter in enumerate(ascii_lowercase)}
_LEET = (
    str.maketrans("0134578@$!|+", "oieastbasilt"),
    str.maketrans("0134578@$!|+", "oleastbasilt"),
)
_TOKEN = re.compile(r"\S+")
_DISGUISED = re.compile(
    r"[^\x00-\x7f]|[A-Za-z][0134578@$!|+]+[A-Za-z]|\b[0134578@$!|+]+[A-Za-z]|[A-Za-z]{2}[0134578@$]"
)
_HEXADECIMAL = re.compile(r"(?=.*[0-9].*[0-9])[0-9a-fA-F]+")
_LEET_WORD = re.compile(r"(?<![A-Za-z0-9])[A-Za-z0134578@$!|+]{2,24}(?![A-Za-z0-9])")
_TRAILING = re.compile(r"[0-9!+|]+$")


_ENOUGH = 3  # words with digits for letters, after which any is one


def _find_odd_words(text: str, vocabulary: frozenset[str]) -> Iterator[_Found]:
    if _DISGUISED.search(text) is None:
        return
    masked: list[tuple[int, int, str]] = []
    surely = 0
    for match in _TOKEN.finditer(text):
        if _DISGUISED.search(match[0]):
            plain = _unmask(match[0])
            masked.append((*match.span(), plain))
            surely += any(_unleet(word, vocabulary) != word for word in _LEET_WORD.findall(plain))
    for start, end, plain in masked:
        before = text[start:end]
        after = _LEET_WORD.sub(lambda word: _unleet(word[0], vocabulary, certain=surely >= _ENOUGH), plain)
        # A short word of another alphabet may well look like one of ours.
        chance = not _PLAIN_LETTER.search(before) and len(before) < 4
        known = not chance and _count_known(after, vocabulary) > _count_known(before, vocabulary)
        if after != before and (known or (surely >= _ENOUGH and after != plain) or _is_masked(before, plain)):
            yield _Found(start, end, after)


def _is_masked(before: str, plain: str) -> bool:
    """Whether Latin letters came out of a word that mixed alphabets, or of symbols that are letters in other dress."""
    if not plain.isascii() or not any(map(str.isalpha, plain)):
        return False
    dressed = any(unicodedata.normalize("NFKC", letter).isascii() or ord(letter) in _BOXED for letter in before[:99])
    mixed = any("a" <= letter <= "z" for letter in before.lower())
    return not before.isascii() and (mixed or dressed)


def _unmask(word: str) -> str:
    """Latin letters for those that look like them; format characters and fillers left out."""
    if word.isascii():
        return word
    shown = []
    for letter in word:
        if unicodedata.category(letter) == "Cf" or letter in "\u034f\u115f\u1160\u2800\u3164\uffa0":
            continue
        same = unicodedata.normalize("NFKC", letter)
        shown.append(same if len(same) == 1 else letter)
    return "".join(shown).translate(_BOXED).lower().translate(_LOOKALIKES)


def _unleet(word: str, vocabulary: frozenset[str], *, certain: bool = False) -> str:
    """A word for one with digits among its letters; a number at its end is a number, unless it is `certain`."""
    inner = _TRAILING.sub("", word)
    if not any(map(str.isalpha, word)) or (inner.isalpha() and not certain) or _HEXADECIMAL.fullmatch(word):
        return word
    for part in (word, word.rstrip("!|+"), inner):
        for table in _LEET:
            if (plain := part.lower().translate(table)) in vocabulary:
                return plain + word[len(part) :]
    return word.lower().translate(_LEET[0]) if certain else word


def _count_known(text: str, vocabulary: frozenset[str]) -> int:
    """Letters in known words."""
    return sum(len(word.text) for word in find_words(text) if word.text in vocabulary)


# Words without blanks: the tokenizer gives up on a word of more than a hundred letters

_UNBROKEN = re.compile(r"[A-Za-z]{100,}")


def _find_unbroken(text: str, vocabulary: frozenset[str]) -> Iterator[_Found]:
    for match in _UNBROKEN.finditer(text):
        words = _split(match[0].lower(), vocabulary)
        if _are_words(words, vocabulary):
            yield _Found(*match.span(), " ".join(words))


# Shifted and mirrored alphabets, reversed text

_CLAUSE = re.compile(r"[^.:;!?\"“”`\n]+")
_SAMPLE = 40  # words that decide how a passage is to be read
_PLAIN_LETTER = re.compile(r"[A-Za-z]")
_ALPHABET = ascii_lowercase + ascii_lowercase.upper()


def _alphabet(small: str) -> dict[int, str]:
    return {ord(one): two for one, two in zip(_ALPHABET, small + small.upper(), strict=True)}


def _translates(table: dict[int, str]) -> Callable[[str], str]:
    return lambda text: text.translate(table)


def _reverse(text: str) -> str:
    return text[::-1]


_SHIFTS = (13, *(by for by in range(1, 26) if by != 13))
_READINGS = (
    *(_translates(_alphabet(ascii_lowercase[by:] + ascii_lowercase[:by])) for by in _SHIFTS),
    _translates(_alphabet(ascii_lowercase[::-1])),
    _reverse,
)


def _find_shifted(text: str, vocabulary: frozenset[str]) -> Iterator[_Found]:
    for low, high in _find_strange_parts(text, vocabulary):
        part = text[low:high].strip()
        start = text.index(part, low)
        end = start + len(part)
        sample = list({word.text for word in islice(find_words(part), 4 * _SAMPLE) if len(word.text) > 2})[:_SAMPLE]
        letters = sum(map(len, sample))
        if len(sample) < 3 or letters < 15:
            continue
        for read in _READINGS:
            if sum(len(word) for word in sample if read(word) in vocabulary) >= 0.75 * letters:
                yield _Found(start, end, _reverse_words(part) if read is _reverse else read(part))
                break


def _reverse_words(text: str) -> str:
    """Turned round as a whole, or word by word where that puts a capital first."""
    words = text.split()
    if words[0][-1].isupper() and not words[-1][-1].isupper():
        return re.sub(r"[^\W\d_]+", lambda word: word[0][::-1], text)
    return text[::-1]


def _find_strange_parts(text: str, vocabulary: frozenset[str]) -> list[tuple[int, int]]:
    """Clauses in a row that are not English."""
    parts: list[tuple[int, int]] = []
    joined = False
    for match in _CLAUSE.finditer(text):
        if not _PLAIN_LETTER.search(match[0]):
            continue
        strange = _share_known(match[0], vocabulary) < 0.5
        if strange and joined:
            parts[-1] = (parts[-1][0], match.end())
        elif strange:
            parts.append(match.span())
        joined = strange
    return parts


def _share_known(text: str, vocabulary: frozenset[str]) -> float:
    words = find_words(text)
    letters = sum(len(word.text) for word in words)
    return sum(len(word.text) for word in words if word.text in vocabulary) / letters if letters else 1.0


_FINDERS: tuple[Finder, ...] = (
    _finds_runs(_TAGS, _read_tags, sure=True),
    _finds_runs(_BINARY, _read_binary),
    _finds_runs(_HEX, _read_hex),
    _find_percent,
    _finds_runs(_UNICODE, _read_unicode, sure=True),
    _finds_runs(_ENTITIES, _read_entities, sure=True),
    _finds_runs(_BASE64, _read_base64),
    _find_spaced,
    _find_odd_words,
    _find_unbroken,
    _find_shifted,
)
"""From what is hardest to mistake to what is easiest."""
