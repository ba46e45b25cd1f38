"""Reading JSON bodies: typed looks into plain dicts, and the strings in fields nobody has told us about.

Wire bodies stay plain dicts: what we do not know must be carried, not validated away.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from guardrail.conversation import JSON, SHORT, Part, PartKind, Usage
from guardrail.errors import BadRequest, GuardrailError, UpstreamError

_BLANKLESS = re.compile(r"[!-~]*")
_ESCAPE = re.compile(r"""\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))""")
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def read_object(raw: bytes, error: type[GuardrailError], what: str) -> JSON:
    try:
        # Strictly UTF-8: left to itself `json` also reads UTF-16 and half surrogate pairs, which others read otherwise.
        body = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise error(f"{what} is not valid JSON, or says a field twice") from None
    if not isinstance(body, dict):
        raise error(f"{what} must be a JSON object, not {type(body).__name__}")
    return body


def _once(pairs: list[tuple[str, Any]]) -> JSON:
    # Of two fields of one name some readers take the first and some the last (RFC 8259, section 4): we judge neither.
    body = dict(pairs)
    if len(body) < len(pairs):
        raise ValueError
    return body


def read_request_object(raw: bytes) -> JSON:
    return read_object(raw, BadRequest, "The request body")


def read_upstream_object(raw: bytes) -> JSON:
    return read_object(raw, UpstreamError, "The upstream's answer")


def check_field(body: JSON, name: str, kind: type, what: str, *, required: bool = False) -> None:
    """Raises `BadRequest` naming the field where the caller sent another type."""
    value = body.get(name)
    if value is None and not required:
        return
    if not isinstance(value, kind):
        raise BadRequest(f"'{name}' must be {what}", param=name)


def expect(value: Any, kind: type, what: str) -> Any:
    """The value, if the upstream sent what the format promises; None stands for an absent field."""
    if value is not None and not isinstance(value, kind):
        raise UpstreamError(f"the upstream sent {what} of type {type(value).__name__}")
    return value


def strings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every string inside a value with the path that leads to it; list positions count as one path, and a field name
    too long to be one as a string.
    """
    waiting = [(value, path)]
    while waiting:  # not recursive: a body may be nested as deep as the JSON reader goes
        value, path = waiting.pop()
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, dict):
            for name, inner in reversed(value.items()):
                waiting.append((inner, f"{path}.{name[:SHORT]}"))
                if len(name) > SHORT:
                    waiting.append((name, path))
        elif isinstance(value, list):
            waiting += [(inner, f"{path}[]") for inner in reversed(value)]


def unknown_strings(holder: JSON, known: frozenset[str], path: str) -> Iterator[tuple[str, str]]:
    yield from strings({name: value for name, value in holder.items() if name not in known}, path)


def strange_names(holder: JSON, names: tuple[str, ...], path: str) -> Iterator[tuple[str, str]]:
    """The strings in fields that should hold a name, an id or an enum, and hold something to read instead."""
    for where, text in strings({name: holder.get(name) for name in names}, path):
        if not is_blankless(text):
            yield where, text


def is_blankless(text: str) -> bool:
    """Whether a text is printable ASCII without a blank: an id, a signature, an encoded blob."""
    return _BLANKLESS.fullmatch(text) is not None


def unknown_parts(found: Iterator[tuple[str, str]]) -> list[Part]:
    """Unknown strings joined per path, those that stay short left out."""
    joined: dict[str, list[str]] = {}
    for path, text in found:
        joined.setdefault(path, []).append(text)
    parts = [Part(PartKind.UNKNOWN, "".join(texts), path) for path, texts in joined.items()]
    return [part for part in parts if len(part.text) > SHORT]


def read_usage(body: JSON, names: tuple[str, str] = ("prompt_tokens", "completion_tokens")) -> Usage | None:
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    return Usage(*(_count(usage.get(name)) for name in names))


def _count(tokens: Any) -> int:
    # Beyond 32 bits it counts nothing, and the collector that a span goes to cannot take it.
    return tokens if isinstance(tokens, int) and 0 <= tokens < 1 << 31 else 0


def write_json(body: JSON) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can say and UTF-8 cannot
        return json.dumps(body, separators=(",", ":")).encode()


def write_error(error: GuardrailError) -> bytes:
    """OpenAI's error object; all four fields are always there."""
    fields = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return write_json({"error": fields})


def readable(call: str) -> str:
    """A tool call, "name\\narguments", with JSON arguments decoded so that a scorer reads words and not escapes: a line
    for every leaf, names, numbers and fields said twice included.
    """
    name, _, arguments = call.partition("\n")
    try:
        decoded = json.loads(arguments, object_pairs_hook=_Fields, parse_int=str, parse_float=str, parse_constant=str)
    except (ValueError, RecursionError):
        return f"{name}\n{unescaped(arguments)}"
    return "\n".join([name, *_leaves(decoded)])


class _Fields(tuple[tuple[str, Any], ...]):
    """The fields of a JSON object as they stand."""


def _leaves(value: Any) -> Iterator[str]:
    waiting = [(value, "")]
    while waiting:
        value, path = waiting.pop()
        if isinstance(value, _Fields) and value:
            waiting += [(inner, f"{path}.{name}") for name, inner in reversed(value)]
        elif isinstance(value, list) and value:
            waiting += [(inner, f"{path}[]") for inner in reversed(value)]
        else:
            text = value if isinstance(value, str) else ""
            yield f"{path.removeprefix('.')}: {text}" if path else text


def unescaped(text: str) -> str:
    """The text with JSON's escapes undone, for text that is JSON, or was to become it, and does not parse."""
    plain = _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else _ESCAPED.get(found[2], found[2]), text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def before_escape(text: str, at: int) -> int:
    """`at`, or the beginning of the escape that it may cut in two."""
    cut = text.rfind("\\", max(0, at - 5), at)
    while cut > 0 and text[cut - 1] == "\\":
        cut -= 1
    return at if cut < 0 else cut
