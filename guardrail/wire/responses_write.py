"""Response objects and messages of our own, in the shapes of the Responses API."""

from __future__ import annotations

from typing import Any

from guardrail.conversation import JSON, SHORT, Replacement, Request, Usage
from guardrail.wire import fields
from guardrail.wire.fields import is_blankless, strings
from guardrail.wire.responses_read import ECHOED

# What an object of ours takes over from the upstream's, beside what repeats the request.
_HEAD = frozenset({"id", "object", "created_at", "model", "service_tier", "reasoning"})


def refuses(replacement: Replacement) -> bool:
    """Whether a text stands in a `refusal` part. Clients may hide those, so a crisis refusal is ordinary text."""
    return replacement.as_refusal or replacement.finish == "content_filter"


def write_part(kind: str, text: str) -> JSON:
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def write_item(name: str, content: list[JSON], status: str = "completed") -> JSON:
    return {"id": name, "type": "message", "status": status, "role": "assistant", "content": content}


def write_message(replacement: Replacement, note: JSON) -> JSON:
    part = write_part("refusal" if refuses(replacement) else "output_text", replacement.text)
    return write_item(f"msg_{note['decision']}", [part])


def write_object(like: JSON, output: list[JSON], note: JSON) -> JSON:
    """A completed response with this output, like another in all that does not hold the answer a second time."""
    kept = {name: value for name, value in like.items() if not _may_repeat(name, value)}
    ours = {"status": "completed", "error": None, "incomplete_details": None, "output": output, "guardrail": note}
    return {**kept, **ours}


def _may_repeat(name: str, value: Any) -> bool:
    if name in ECHOED or name == "usage":
        return False
    if name in _HEAD:  # an id, unless it is one to read
        return any(len(text) > SHORT and not is_blankless(text) for _, text in strings({name: value}, ""))
    return name == "output_text" or any(len(text) > SHORT for _, text in strings({name: value}, ""))


def write_head(request: Request, note: JSON, created: int) -> JSON:
    """An empty response to a request of which the upstream said nothing."""
    asked = request.body
    return {
        "id": f"resp_{note['decision']}",
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": asked.get("instructions"),
        "metadata": asked.get("metadata") or {},
        "model": request.model,
        "output": [],
        "parallel_tool_calls": asked.get("parallel_tool_calls", True),
        "previous_response_id": asked.get("previous_response_id"),
        "store": False,
        "temperature": asked.get("temperature"),
        "text": asked.get("text") or {"format": {"type": "text"}},
        "tool_choice": asked.get("tool_choice") or "auto",
        "tools": asked.get("tools") or [],
        "top_p": asked.get("top_p"),
        "usage": None,
    }


def read_usage(body: JSON) -> Usage | None:
    return fields.read_usage(body, ("input_tokens", "output_tokens"))


def write_usage(usage: Usage, like: Any = None) -> JSON:
    """The counts; the details of another usage stay."""
    details: JSON = {
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    return {
        **details,
        **(like if isinstance(like, dict) else {}),
        "input_tokens": usage.prompt,
        "output_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }
