"""The OpenAI chat-completions shapes that both upstreams speak: a request read strictly, answers written.

`read` turns bytes into a frozen `ChatRequest` or raises `BadRequest` naming the field. A `Form` turns pieces of text
into a plain body or into a stream's frames, told by the request. No I/O here.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from guardrail.errors import BadRequest, GuardrailError
from guardrail.upstream import UpstreamResponse

Json = dict[str, object]

MOST_CHOICES = 8
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "user",
    "function": "user",
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One message; `role` is system, user or assistant."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What of a request we honour. None means that the caller left it to us."""

    turns: tuple[Turn, ...]
    stream: bool
    include_usage: bool
    n: int
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    stop: tuple[str, ...]
    seed: int | None

    @property
    def last_user(self) -> str:
        return next((turn.text for turn in reversed(self.turns) if turn.role == "user"), "")

    @property
    def system(self) -> str:
        return "\n".join(turn.text for turn in self.turns if turn.role == "system")


def read(body: bytes) -> ChatRequest:
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is not JSON") from error
    if not isinstance(raw, dict):
        raise BadRequest("the body must be a JSON object")
    options = raw.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequest("stream_options must be an object", param="stream_options")
    limit = "max_completion_tokens" if raw.get("max_completion_tokens") is not None else "max_tokens"
    return ChatRequest(
        turns=_turns(raw.get("messages")),
        stream=_flag(raw, "stream"),
        include_usage=_flag(options, "include_usage"),
        n=_integer(raw, "n", 1, MOST_CHOICES) or 1,
        max_tokens=_integer(raw, limit, 1, 1 << 31),
        temperature=_number(raw, "temperature", 0.0, 2.0),
        top_p=_number(raw, "top_p", 0.0, 1.0),
        stop=_stop(raw.get("stop")),
        seed=_integer(raw, "seed", -(1 << 63), (1 << 63) - 1),
    )


def _turns(messages: object) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a list with at least one message", param="messages")
    return tuple(_turn(message, f"messages[{index}]") for index, message in enumerate(messages))


def _turn(message: object, where: str) -> Turn:
    if not isinstance(message, dict):
        raise BadRequest(f"{where} must be an object", param=where)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise BadRequest(f"{where}.role must be one of {', '.join(ROLES)}", param=f"{where}.role")
    content = message.get("content")
    if content is None and role == "assistant":
        content = ""  # a message that only called tools
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}.content[{index}]") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise BadRequest(f"{where}.content must be a string or a list of parts", param=f"{where}.content")
    return Turn(ROLES[role], content)


def _part(part: object, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get(kind) if isinstance(part, dict) and kind in ("text", "refusal") else None
    if not isinstance(text, str):
        raise BadRequest(f"{where}: this model reads text parts only", param=where)
    return text


def _flag(raw: Mapping[str, object], name: str) -> bool:
    value = raw.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false", param=name)
    return bool(value)


def _integer(raw: Mapping[str, object], name: str, least: int, most: int) -> int | None:
    value = raw.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadRequest(f"{name} must be an integer from {least} to {most}", param=name)
    return value


def _number(raw: Mapping[str, object], name: str, least: float, most: float) -> float | None:
    value = raw.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise BadRequest(f"{name} must be a number from {least:g} to {most:g}", param=name)
    return float(value)


def _stop(value: object) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > 4 or not all(isinstance(s, str) and s for s in stops):
        raise BadRequest("stop must be a string, or a list of at most 4 strings, none of them empty", param="stop")
    return tuple(stops)


def usage(prompt: int, completion: int) -> Json:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all parts of one answer share."""

    model: str
    id: str = field(default_factory=_new_id)
    created: int = field(default_factory=lambda: int(time.time()))

    def plain(self, choices: Sequence[tuple[Json, str]], usage: Json) -> bytes:
        """A `chat.completion` body; a choice is a message and its finish_reason."""
        listed = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": finish}
            for index, (message, finish) in enumerate(choices)
        ]
        return _dump(self._head("chat.completion") | {"choices": listed, "usage": usage})

    def frame(self, choices: Sequence[Json], extra: Json) -> bytes:
        return b"data: " + _dump(self._head("chat.completion.chunk") | {"choices": choices} | extra) + b"\n\n"

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class Form(Protocol):
    """How an answer goes out: pieces of text in, bytes out (empty: nothing yet)."""

    def start(self) -> bytes: ...

    def push(self, index: int, text: str, finish: str | None, tokens: int) -> bytes: ...

    def end(self) -> bytes: ...


def form(request: ChatRequest, model: str, prompt_tokens: int) -> Form:
    return (_Streamed if request.stream else _Plain)(request, Envelope(model), prompt_tokens)


class _Plain:
    def __init__(self, request: ChatRequest, envelope: Envelope, prompt: int) -> None:
        self._envelope = envelope
        self._prompt = prompt
        self._texts = [""] * request.n
        self._finishes = ["stop"] * request.n
        self._tokens = [0] * request.n

    def start(self) -> bytes:
        return b""

    def push(self, index: int, text: str, finish: str | None, tokens: int) -> bytes:
        self._texts[index] += text
        self._tokens[index] = tokens
        self._finishes[index] = finish or "stop"
        return b""

    def end(self) -> bytes:
        messages: list[Json] = [{"role": "assistant", "content": text, "refusal": None} for text in self._texts]
        choices = list(zip(messages, self._finishes, strict=True))
        return self._envelope.plain(choices, usage(self._prompt, sum(self._tokens)))


class _Streamed:
    def __init__(self, request: ChatRequest, envelope: Envelope, prompt: int) -> None:
        self._writer = Frames(envelope, include_usage=request.include_usage)
        self._prompt = prompt
        self._tokens = [0] * request.n

    def start(self) -> bytes:
        return b"".join(self._writer.role(index) for index in range(len(self._tokens)))

    def push(self, index: int, text: str, finish: str | None, tokens: int) -> bytes:
        self._tokens[index] = tokens
        out = self._writer.delta(index, {"content": text}) if text else b""
        return out + (self._writer.delta(index, {}, finish) if finish else b"")

    def end(self) -> bytes:
        return self._writer.end(self._prompt, sum(self._tokens))


class Frames:
    """The frames of one stream. With `include_usage` every frame has a `usage` key, null but in the last."""

    def __init__(self, envelope: Envelope, *, include_usage: bool) -> None:
        self._envelope = envelope
        self._extra: Json = {"usage": None} if include_usage else {}

    def role(self, index: int) -> bytes:
        return self.delta(index, {"role": "assistant", "content": "", "refusal": None})

    def delta(self, index: int, delta: Json, finish: str | None = None) -> bytes:
        choice: Json = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._envelope.frame([choice], self._extra)

    def end(self, prompt: int, completion: int) -> bytes:
        last = self._envelope.frame([], {"usage": usage(prompt, completion)}) if self._extra else b""
        return last + b"data: [DONE]\n\n"


def _dump(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def problem(error: GuardrailError, *, retry_after: int | None = None) -> UpstreamResponse:
    """An error in OpenAI's shape."""
    shape: Json = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    extra = {} if retry_after is None else {"retry-after": str(retry_after)}
    return answer(_dump({"error": shape}), status=error.status, headers=extra)


def models(path: str, model: str, owner: str) -> UpstreamResponse | None:
    """The answer to `/v1/models` and to `/v1/models/{id}` of our one model, or None."""
    entry: Json = {"id": model, "object": "model", "created": 1730419200, "owned_by": owner}
    if path == "/v1/models":
        return answer(_dump({"object": "list", "data": [entry]}))
    return answer(_dump(entry)) if path == f"/v1/models/{model}" else None


def answer(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> UpstreamResponse:
    return UpstreamResponse(status, _headers("application/json", headers), _whole(body))


def streamed(stream: AsyncGenerator[bytes, None], *, sse: bool) -> UpstreamResponse:
    kind = "text/event-stream; charset=utf-8" if sse else "application/json"
    return UpstreamResponse(200, _headers(kind, {"cache-control": "no-cache"} if sse else None), stream)


def _headers(kind: str, more: Mapping[str, str] | None) -> Mapping[str, str]:
    return {"content-type": kind, "x-request-id": f"req_{uuid.uuid4().hex}", **(more or {})}


async def _whole(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
