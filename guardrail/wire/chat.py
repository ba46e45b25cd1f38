"""OpenAI chat completions, `POST /v1/chat/completions`: plain and streamed.

Reading sorts every string inside a choice into parts: text, refusal, reasoning, tool calls, and whatever else is
there as unknown parts. Writing patches a copy of the upstream's own body; a choice that is replaced keeps its index
and nothing more of what the model said (openai-openapi, `CreateChatCompletionResponse`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from guardrail.conversation import (
    JSON,
    SHORT,
    Choice,
    Part,
    PartKind,
    Piece,
    Replacement,
    Replacements,
    Request,
    Response,
    StreamEvent,
    Usage,
)
from guardrail.errors import BadRequest, GuardrailError, UpstreamError
from guardrail.wire.fields import (
    expect,
    read_request_object,
    read_upstream_object,
    read_usage,
    strings,
    unknown_parts,
    write_json,
)
from guardrail.wire.fields import write_error as write_error
from guardrail.wire.parts import REASONING, find_messages, pick_visible, read_pieces, read_unknown
from guardrail.wire.sse import Frame, write_frame

PATH = "/v1/chat/completions"
HEADERS = frozenset({"openai-organization", "openai-project", "openai-beta"})

# What our own part of a body takes over from the upstream's: nothing that could hold the answer a second time.
_HEAD = ("id", "object", "created", "model", "service_tier", "system_fingerprint")
# Pieces that count without text: an image is held to be read, a call to be whole.
_FELT_EMPTY = (PartKind.UNSCANNABLE, PartKind.TOOL_CALL)
# What a safe completion is asked for without: it must be one plain text, not streamed.
_STRIPPED = (
    *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "n", "stream", "stream_options"),
    *("response_format", "logprobs", "top_logprobs", "modalities", "audio", "prediction"),
)


# Requests


def read_request(raw: bytes) -> Request:
    """Raises `BadRequest` naming the field that is missing or of the wrong type."""
    body = read_request_object(raw)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a non-empty array", param="messages")
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest("each message must be an object with a 'role'", param=f"messages[{at}]")
        if not isinstance(message.get("content"), str | list | None):
            raise BadRequest("'content' must be a string or an array", param=f"messages[{at}].content")
    _check(body, "model", str, "a string", required=True)
    _check(body, "stream", bool, "a boolean")
    _check(body, "n", int, "an integer")
    _check(body, "tools", list, "an array")
    _check(body, "response_format", dict, "an object")
    _check(body, "stream_options", dict, "an object")
    count = body.get("n")
    if isinstance(count, bool) or (count is not None and not 1 <= count <= 128):
        raise BadRequest("'n' must be from 1 to 128", param="n")
    if body.get("background"):
        raise BadRequest("'background' is not served: its answer could not be judged", param="background")
    if body.get("store"):
        # What is stored upstream is the draft: a side door to it for whoever may read it there.
        body = {**body, "store": False}
        raw = write_json(body)
    users = [message for message in messages if message["role"] == "user"]
    last = messages[-1]
    return Request(
        raw=raw,
        body=body,
        model=body["model"],
        prompt=_message_text(users[-1]) if users else "",
        prefill=_message_text(last) if last["role"] == "assistant" else "",
        stream=bool(body.get("stream")),
        include_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        structured=_is_structured(body),
        choices=count or 1,
    )


def _check(body: JSON, name: str, kind: type, what: str, *, required: bool = False) -> None:
    value = body.get(name)
    if value is None and not required:
        return
    if not isinstance(value, kind):
        raise BadRequest(f"'{name}' must be {what}", param=name)


def _message_text(message: JSON) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    texts = [part.get("text") for part in content or () if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _is_structured(body: JSON) -> bool:
    if (body.get("response_format") or {}).get("type") in ("json_schema", "json_object"):
        return True
    functions = (tool.get("function") for tool in body.get("tools") or () if isinstance(tool, dict))
    return any(isinstance(function, dict) and function.get("strict") for function in functions)


def instruct(request: Request, instruction: str) -> bytes:
    """The same request with an instruction added to its system message."""
    body = dict(request.body)
    messages = list(body["messages"])
    for at, message in enumerate(messages):
        if message["role"] in ("system", "developer") and isinstance(message.get("content"), str):
            messages[at] = {**message, "content": f"{message['content']}\n\n{instruction}"}
            break
    else:
        messages.insert(0, {"role": "system", "content": instruction})
    body["messages"] = messages
    return write_json(body)


def ask_again(request: Request, instruction: str) -> bytes:
    """The request for a safe completion: instructed, and asking for one plain text."""
    body = {name: value for name, value in request.body.items() if name not in _STRIPPED}
    if request.prefill:
        # An answer begun for the model is the draft's beginning, not the user's question.
        body["messages"] = request.body["messages"][:-1]
    return instruct(Request(b"", body, request.model, request.prompt), instruction)


# Plain responses


def read_response(raw: bytes) -> Response:
    """Raises `UpstreamError` where the body is not a chat completion."""
    body = read_upstream_object(raw)
    if not isinstance(body.get("choices"), list):
        raise UpstreamError("the upstream's answer has no 'choices'")
    choices = tuple(_read_choice(choice, at) for at, choice in enumerate(_listed(body)))
    if len({choice.index for choice in choices}) < len(choices):
        raise UpstreamError("the upstream's answer has two choices of one index")
    return Response(raw, body, choices, read_usage(body))


def _listed(body: JSON) -> list[JSON]:
    if any(name != "choices" and name.casefold() == "choices" for name in body):
        raise UpstreamError("the upstream's answer spells 'choices' in a way that only some readers accept")
    choices: list[JSON] = expect(body.get("choices"), list, "choices") or []
    if not all(isinstance(choice, dict) for choice in choices):
        raise UpstreamError("the upstream sent a choice that is no object")
    return choices


def _index(choice: JSON, position: int) -> int:
    index = choice.get("index", position)
    if not isinstance(index, int) or isinstance(index, bool):
        raise UpstreamError("the upstream sent a choice without a number")
    return index


def _read_choice(choice: JSON, position: int) -> Choice:
    index = _index(choice, position)
    said = [piece for message in find_messages(choice) for piece in read_pieces(message, index)]
    parts = [Part(piece.kind, piece.text, piece.key) for piece in said]
    unknown = unknown_parts(read_unknown(choice, pick_visible(said)))
    return Choice(index, (*_joined(parts), *unknown), choice.get("finish_reason"))


def _joined(parts: list[Part]) -> list[Part]:
    """Parts of one kind and key as one, in the order of their first appearance."""
    texts: dict[tuple[PartKind, str], list[str]] = {}
    for part in parts:
        texts.setdefault((part.kind, part.key), []).append(part.text)
    return [Part(kind, "".join(said), key) for (kind, key), said in texts.items()]


def write_response(
    response: Response,
    replaced: Replacements,
    unreasoned: Collection[int],
    note: JSON,
    usage: Usage | None,
) -> bytes:
    """A copy of the upstream's body with choices replaced, reasoning of the choices `unreasoned` dropped,
    the `guardrail` object added, and `usage` in place of the upstream's where it is given.
    """
    choices = list(response.body["choices"])
    for at, choice in enumerate(choices):
        index = choice.get("index", at)
        if index in replaced:
            choices[at] = _replaced_choice(index, replaced[index])
        elif index in unreasoned:
            choices[at] = _unreasoned_choice(choice)
    kept = {name: value for name, value in response.body.items() if not replaced or not _may_repeat(name, value)}
    body = {**kept, "choices": choices, "guardrail": note}
    if usage is not None:
        body["usage"] = {**(body.get("usage") or {}), **_write_usage(usage)}
    return write_json(body)


def _may_repeat(name: str, value: Any) -> bool:
    """Whether a field beside the choices could hold the replaced answer once more."""
    known = name in _HEAD or name in ("choices", "usage")
    return not known and any(len(text) > SHORT for _, text in strings({name: value}, ""))


def _replaced_choice(index: int, replacement: Replacement) -> JSON:
    return {
        "index": index,
        "message": {"role": "assistant", **_content(replacement)},
        "logprobs": None,
        "finish_reason": replacement.finish,
    }


def _content(replacement: Replacement) -> JSON:
    if replacement.as_refusal:
        return {"content": None, "refusal": replacement.text}
    return {"content": replacement.text, "refusal": None}


def _unreasoned_choice(choice: JSON) -> JSON:
    """The choice less its reasoning, and less the log probabilities that would spell it out again."""
    held = {name: choice[name] for name in ("delta", "message") if isinstance(choice.get(name), dict)}
    kept = {name: _without_reasoning(message) for name, message in held.items()}
    if kept == held:
        return choice
    return {**choice, **kept, **({"logprobs": None} if "logprobs" in choice else {})}


def _without_reasoning(message: JSON) -> JSON:
    kept = {name: value for name, value in message.items() if name not in REASONING}
    if isinstance(kept.get("content"), list):
        kept["content"] = [part for part in kept["content"] if not _is_reasoning(part)]
    return kept


def _is_reasoning(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("thinking", "reasoning")


def _write_usage(usage: Usage) -> JSON:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
    }


def make_response(request: Request, replacement: Replacement, note: JSON, created: int) -> bytes:
    """A whole answer of our own, for a request that never reached the upstream."""
    head = _head(request, note, created, "chat.completion")
    choices = [_replaced_choice(index, replacement) for index in range(request.choices)]
    return write_json({**head, "choices": choices, "usage": _write_usage(Usage()), "guardrail": note})


def _head(request: Request, note: JSON, created: int, kind: str) -> JSON:
    return {"id": f"chatcmpl-{note['decision']}", "object": kind, "created": created, "model": request.model}


# Streams


def read_event(frame: Frame) -> StreamEvent:
    """Raises `UpstreamError` for a data frame that is neither JSON nor `[DONE]`."""
    if frame.data is None:
        return StreamEvent(_sayable(frame))
    if frame.data.strip() == b"[DONE]":
        return StreamEvent(_sayable(frame), done=True)
    body = read_upstream_object(frame.data)
    pieces: list[Piece] = []
    choices: list[int] = []
    finished: list[int] = []
    for choice in _listed(body):
        index = _index(choice, 0)
        choices.append(index)
        said = [piece for message in find_messages(choice) for piece in read_pieces(message, index)]
        pieces.extend(piece for piece in said if piece.text or piece.kind in _FELT_EMPTY)
        unknown = read_unknown(choice, pick_visible(said))
        pieces.extend(Piece(index, PartKind.UNKNOWN, text, path) for path, text in unknown if text)
        if choice.get("finish_reason"):
            finished.append(index)
    return StreamEvent(
        _sayable(frame), body, tuple(pieces), tuple(choices), finished=tuple(finished), usage=read_usage(body)
    )


def _sayable(frame: Frame) -> bytes:
    """The frame as it came, unless more than a name stands in it beside its data: nobody judges comments."""
    if len(frame.beside) <= SHORT:
        return frame.raw
    return b":\n\n" if frame.data is None else write_frame(frame.data.replace(b"\n", b"\ndata: "))


def without_choices(event: StreamEvent, dropped: Collection[int]) -> StreamEvent | None:
    """The event less the choices that are no longer the upstream's; None where nothing is left of it."""
    if event.body is None or not any(index in dropped for index in event.choices):
        return event
    left = [choice for choice in event.body["choices"] if choice.get("index", 0) not in dropped]
    if not left and event.usage is None:
        return None
    return _rewritten(event, {**event.body, "choices": left})


def without_reasoning(event: StreamEvent, dropped: Collection[int]) -> StreamEvent | None:
    """The event less the reasoning of these choices; None where nothing but an empty delta is left of it."""
    if event.body is None or not any(index in dropped for index in event.choices):
        return event
    listed = event.body["choices"]
    choices = [_unreasoned_choice(choice) if choice.get("index", 0) in dropped else choice for choice in listed]
    if choices == listed:
        return event
    if not any(choice.get("delta") or choice.get("finish_reason") for choice in choices) and event.usage is None:
        return None
    return _rewritten(event, {**event.body, "choices": choices})


def _rewritten(event: StreamEvent, body: JSON) -> StreamEvent:
    data = write_json(body)
    return read_event(Frame(write_frame(data), data))


def strip(event: StreamEvent, choices: Collection[int], reasoning: Collection[int]) -> StreamEvent | None:
    """The event less the choices given up, and less the reasoning of others."""
    left = without_choices(event, choices) if choices else event
    return without_reasoning(left, reasoning) if reasoning and left is not None else left


def noted(event: StreamEvent, note: JSON) -> StreamEvent:
    """The event with the `guardrail` object added."""
    return event if event.body is None else _rewritten(event, {**event.body, "guardrail": note})


def with_usage(event: StreamEvent, usage: Usage) -> StreamEvent:
    """The event with other token counts; what else its usage says stays."""
    if event.body is None or event.usage is None:
        return event
    return _rewritten(event, {**event.body, "usage": {**event.body["usage"], **_write_usage(usage)}})


def open_stream(request: Request, created: int) -> ChatStream:
    return ChatStream(request, created)


class ChatStream:
    """`created` is for frames of a stream of which the upstream sent none."""

    def __init__(self, request: Request, created: int) -> None:
        self._request = request
        self._created = created
        self._like: JSON = {}
        self._begun: set[int] = set()

    def read(self, frame: Frame) -> StreamEvent:
        event = read_event(frame)
        if event.body is not None and event.choices:
            self._like = event.body
        return event

    def strip(self, event: StreamEvent, choices: Collection[int], reasoning: Collection[int]) -> StreamEvent | None:
        return strip(event, choices, reasoning)

    def write(self, event: StreamEvent, note: JSON | None = None, usage: Usage | None = None) -> bytes:
        self._begun.update(event.choices)
        if note is not None:
            event = noted(event, note)
        return (event if usage is None else with_usage(event, usage)).raw

    def replace(self, index: int, replacement: Replacement, note: JSON, prefix: str = "") -> bytes:
        """Its text as a delta, then its finish with the `guardrail` object."""
        delta: JSON = {} if index in self._begun else {"role": "assistant"}
        delta["refusal" if replacement.as_refusal else "content"] = prefix + replacement.text
        text = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        end = {"index": index, "delta": {}, "logprobs": None, "finish_reason": replacement.finish}
        head = self._head(note)
        return write_frame(write_json({**head, "choices": [text]})) + write_frame(
            write_json({**head, "choices": [end], "guardrail": note})
        )

    def end(self, note: JSON, usage: Usage | None = None) -> bytes:
        if usage is None or not self._request.include_usage:
            return DONE
        return write_frame(write_json({**self._head(note), "choices": [], "usage": _write_usage(usage)})) + DONE

    def fail(self, error: GuardrailError) -> bytes:
        return write_frame(write_error(error))

    def _head(self, note: JSON) -> JSON:
        head = _head(self._request, note, self._created, "chat.completion.chunk")
        return head | {name: self._like[name] for name in _HEAD if name in self._like}


DONE = write_frame(b"[DONE]")
