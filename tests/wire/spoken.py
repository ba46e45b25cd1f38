"""What an upstream of the Responses API says, item by item: whole objects, and the event streams that build them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from guardrail.conversation import JSON

USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 30,
}


def message(*texts: str, name: str = "msg_1", **fields: Any) -> JSON:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []} for text in texts]
    return {"id": name, "type": "message", "status": "completed", "role": "assistant", "content": content, **fields}


def refusal(text: str) -> JSON:
    return {**message(name="msg_r"), "content": [{"type": "refusal", "refusal": text}]}


def reasoning(*summaries: str, content: Sequence[str] = (), name: str = "rs_1") -> JSON:
    said = [{"type": "summary_text", "text": text} for text in summaries]
    thought = {"content": [{"type": "reasoning_text", "text": text} for text in content]} if content else {}
    return {"id": name, "type": "reasoning", "summary": said, **thought, "encrypted_content": "gAAAAB" * 20}


def call(arguments: str, name: str = "send") -> JSON:
    head = {"id": "fc_1", "type": "function_call", "status": "completed", "call_id": "call_1"}
    return {**head, "name": name, "arguments": arguments}


def response(*items: JSON, status: str = "completed", **fields: Any) -> JSON:
    return {
        "id": "resp_" + "5af0" * 12,
        "object": "response",
        "created_at": 1700000000,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": "Be brief, and never say more than has been asked of you.",
        "metadata": {},
        "model": "fake",
        "output": list(items),
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": None if status == "in_progress" else USAGE,
        **fields,
    }


def body(*items: JSON, **fields: Any) -> bytes:
    # Odd spacing on purpose: a clean body must leave as these bytes, not as equal JSON.
    return json.dumps(response(*items, **fields), indent=1).encode()


def frame(event: JSON) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def stream(*items: JSON, size: int = 7, status: str = "completed", **fields: Any) -> list[bytes]:
    """The chunks of a stream, one an event."""
    return [frame(event) for event in events(*items, size=size, status=status, **fields)]


def events(*items: JSON, size: int = 7, status: str = "completed", **fields: Any) -> list[JSON]:
    said: list[JSON] = [
        {"type": f"response.{step}", "response": response(status="in_progress")} for step in ("created", "in_progress")
    ]
    for index, item in enumerate(items):
        said += [{**event, "output_index": index} for event in _item(item, size)]
    said.append({"type": f"response.{status}", "response": response(*items, status=status, **fields)})
    return [{**event, "sequence_number": number} for number, event in enumerate(said)]


def _item(item: JSON, size: int) -> Iterator[JSON]:
    empty = {**item, "status": "in_progress"}
    empty |= {name: [] for name in ("content", "summary", "queries") if name in item}
    empty |= {name: "" for name in ("arguments", "input", "code") if name in item}
    empty |= {name: None for name in ("output", "outputs", "results", "result", "action") if name in item}
    yield {"type": "response.output_item.added", "item": empty}
    name = item["id"]
    for position, part in enumerate(item.get("summary") or ()):
        where = {"item_id": name, "summary_index": position}
        yield {"type": "response.reasoning_summary_part.added", **where, "part": {**part, "text": ""}}
        yield from _texts("response.reasoning_summary_text", part["text"], "text", where, size)
        yield {"type": "response.reasoning_summary_part.done", **where, "part": part}
    for position, part in enumerate(item.get("content") or ()):
        where = {"item_id": name, "content_index": position}
        field = "refusal" if part["type"] == "refusal" else "text"
        bare = {
            **part,
            **({field: ""} if field in part else {}),
            **({"annotations": []} if "annotations" in part else {}),
        }
        yield {"type": "response.content_part.added", **where, "part": bare}
        more = {"logprobs": []} if part["type"] == "output_text" else {}
        if part["type"] in ("output_text", "refusal", "reasoning_text"):
            yield from _texts(f"response.{part['type']}", part[field], field, {**where, **more}, size)
        for number, annotation in enumerate(part.get("annotations") or ()):
            added = {"annotation": annotation, "annotation_index": number}
            yield {"type": "response.output_text.annotation.added", **where, **added}
        yield {"type": "response.content_part.done", **where, "part": part}
    kinds = {
        "function_call": ("function_call_arguments", "arguments"),
        "custom_tool_call": ("custom_tool_call_input", "input"),
        "mcp_call": ("mcp_call_arguments", "arguments"),
        "code_interpreter_call": ("code_interpreter_call_code", "code"),
    }
    if item["type"] in kinds:
        stem, field = kinds[item["type"]]
        yield from _texts(f"response.{stem}", item[field], field, {"item_id": name}, size)
    elif item["type"] not in ("message", "reasoning"):
        yield {"type": f"response.{item['type']}.in_progress", "item_id": name}
    yield {"type": "response.output_item.done", "item": item}


def _texts(stem: str, text: str, field: str, where: JSON, size: int) -> Iterator[JSON]:
    for at in range(0, len(text), size):
        yield {"type": f"{stem}.delta", **where, "delta": text[at : at + size], "obfuscation": "x" * 12}
    yield {"type": f"{stem}.done", **where, field: text}
