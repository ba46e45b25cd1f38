"""What an Anthropic message says in its content blocks, sorted into pieces, and how one of ours is said.

The text of all blocks is one text. A thinking block is reasoning that leaves whole: half of one has no signature and
no use. Every other block, known or not (a call, a server tool's call and its result), is sorted as a call: its name
and all that can be read in it, whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from guardrail.conversation import JSON, PartKind, Piece, Replacement, Usage
from guardrail.errors import UpstreamError
from guardrail.wire.fields import expect, is_blankless, strings, write_json

THINKING = ("thinking", "redacted_thinking")

# Names of fields that hold an id, an enum or a sealed blob, if they look it: no blank, nothing beyond ASCII.
_OPAQUE = (
    *(".id", "_id", ".type", ".model", ".role", ".signature", ".fallback_credit_token"),
    *(".encrypted_content", ".encrypted_index", ".encrypted_stdout"),
)
_SEALED = (*_OPAQUE, ".data")


def loose(value: Any, path: str, opaque: tuple[str, ...] = _OPAQUE) -> Iterator[tuple[str, str]]:
    """The strings that can be read in a value, and where they stand."""
    for where, text in strings(value, path):
        if not (where.endswith(opaque) and is_blankless(text)):
            yield where, text


def beside(holder: JSON, known: tuple[str, ...], path: str) -> Iterator[Piece]:
    """What a holder says in fields that are not known, as unknown pieces."""
    rest = {name: value for name, value in holder.items() if name not in known}
    for where, text in loose(rest, path):
        yield Piece(0, PartKind.UNKNOWN, text, where)


def read_message(message: JSON, whole: bool) -> Iterator[Piece]:
    """All that a message says; `whole` keeps its text from leaving in parts."""
    for at, block in enumerate(expect(message.get("content"), list, "message content") or ()):
        yield from read_block(block, str(at), whole)
    yield from beside(message, ("content",), "message")


def read_block(block: Any, key: str, whole: bool) -> Iterator[Piece]:
    """All that a block says, under the key of its own parts. Raises `UpstreamError`."""
    if not isinstance(block, dict):
        raise UpstreamError("the upstream sent a content block that is no object")
    if block.get("type") == "text":
        yield Piece(0, PartKind.TEXT, expect(block.get("text"), str, "a block's text") or "", whole=whole)
        yield from beside(block, ("text",), "text")
    elif block.get("type") in THINKING:
        said = "".join(text for _, text in loose(block, "thinking", _SEALED))
        yield Piece(0, PartKind.REASONING, said, key, whole=True)
    elif "input" in block:
        name = expect(block.get("name"), str, "a tool's name") or ""
        arguments = write_json(block["input"]).decode() if block["input"] else ""  # a stream's come in deltas
        yield Piece(0, PartKind.TOOL_CALL, f"{name}\n{arguments}", key)
        yield from beside(block, ("name", "input"), "call")
    else:
        yield from _read_result(block, key)


def _read_result(block: JSON, key: str) -> Iterator[Piece]:
    media = sorted(set(_find_media(block)))
    for kind in media:
        yield Piece(0, PartKind.UNSCANNABLE, "", kind)
    if said := [text for _, text in loose(block, "block", _SEALED if media else _OPAQUE)]:
        yield Piece(0, PartKind.TOOL_CALL, "\n".join([str(block.get("type")), *said]), key)


def _find_media(block: JSON) -> Iterator[str]:
    """The kinds of what nobody can read in a block: images, sound, files as base64."""
    waiting: list[Any] = [block]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            kind = value.get("type")
            if isinstance(kind, str) and ("image" in kind or "audio" in kind or kind == "base64"):
                yield kind
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


# Ours


def write_content(replacement: Replacement) -> list[JSON]:
    """No text where the client would parse it: there the refusal stands in the details of the stop."""
    return [] if replacement.as_refusal else [{"type": "text", "text": replacement.text}]


def write_stop(replacement: Replacement) -> JSON:
    if not replacement.as_refusal and replacement.finish != "content_filter":
        return {"stop_reason": "end_turn", "stop_sequence": None}
    explanation = replacement.text if replacement.as_refusal else None
    details = {"type": "refusal", "category": None, "explanation": explanation}
    return {"stop_reason": "refusal", "stop_sequence": None, "stop_details": details}


def write_usage(usage: Usage) -> JSON:
    return {"input_tokens": usage.prompt, "output_tokens": usage.completion}
