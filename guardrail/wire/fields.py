"""Reading JSON bodies: typed looks into plain dicts, and the strings in fields nobody has told us about.

Wire bodies stay plain dicts: what we do not know must be carried, not validated away.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from guardrail.conversation import JSON, Part, PartKind, Usage
from guardrail.errors import BadRequest, GuardrailError, UpstreamError

# An unknown string this short (an id, an enum, a timestamp) passes; a longer one is model text until shown otherwise.
SHORT = 32


def read_object(raw: bytes, error: type[GuardrailError], what: str) -> JSON:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise error(f"{what} is not valid JSON") from None
    if not isinstance(body, dict):
        raise error(f"{what} must be a JSON object, not {type(body).__name__}")
    return body


def read_request_object(raw: bytes) -> JSON:
    return read_object(raw, BadRequest, "The request body")


def read_upstream_object(raw: bytes) -> JSON:
    return read_object(raw, UpstreamError, "The upstream's answer")


def expect(value: Any, kind: type, what: str) -> Any:
    """The value, if the upstream sent what the format promises; None stands for an absent field."""
    if value is not None and not isinstance(value, kind):
        raise UpstreamError(f"the upstream sent {what} of type {type(value).__name__}")
    return value


def strings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every string inside a value with the path that leads to it; list positions count as one path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from strings(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner, f"{path}[]")


def unknown_strings(holder: JSON, known: frozenset[str], path: str) -> Iterator[tuple[str, str]]:
    for name, value in holder.items():
        if name not in known and value is not None:
            yield from strings(value, f"{path}.{name}")


def unknown_parts(found: Iterator[tuple[str, str]]) -> list[Part]:
    """Unknown strings joined per path, those that stay short left out."""
    joined: dict[str, str] = {}
    for path, text in found:
        joined[path] = joined.get(path, "") + text
    return [Part(PartKind.UNKNOWN, text, path) for path, text in joined.items() if len(text) > SHORT]


def read_usage(body: JSON) -> Usage | None:
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return Usage(
        prompt if isinstance(prompt, int) else 0,
        completion if isinstance(completion, int) else 0,
    )


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
    """A tool call, "name\\narguments", with JSON arguments decoded so that a scorer reads words and not escapes."""
    name, _, arguments = call.partition("\n")
    try:
        decoded = json.loads(arguments)
    except (ValueError, RecursionError):
        return call
    lines = [f"{path.lstrip('.')}: {text}" if path else text for path, text in strings(decoded, "")]
    return "\n".join([name, *lines]) if lines else call
