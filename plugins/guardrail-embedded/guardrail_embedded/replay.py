"""`ReplayUpstream`: canned answers, keyed by the last user message. For the demo and for tests.

Entries come from a YAML or JSON file, `replay.yaml` here unless told otherwise, and are checked when read. An entry may
have a `safe` answer: it is given when a system or developer message speaks of a "safe completion", as a model would
that follows guardrail's instruction.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from guardrail.errors import ConfigError, GuardrailError, NotFound
from guardrail.upstream import UpstreamResponse
from guardrail_embedded import chat
from guardrail_embedded.chat import ChatRequest, Envelope, Frames, Json

MODEL = "replay (demo)"
_MARKER = "safe completion"
_DEFAULT = "This is a replayed demo: I only know the answers to the prompts in my file."


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice. `content` is None where only tools are called or `refusal` is set."""

    content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    def __post_init__(self) -> None:
        if self.content is None and self.refusal is None and not self.tool_calls:
            raise ValueError("an answer needs content, a refusal or tool_calls")

    @property
    def finish(self) -> str:
        return "tool_calls" if self.tool_calls else "stop"

    def length(self) -> int:
        called = "".join(call.name + call.arguments for call in self.tool_calls)
        return len((self.content or "") + (self.reasoning or "") + (self.refusal or "") + called)


@dataclass(frozen=True, slots=True)
class Entry:
    """`kind` (harmless, dual-use, malicious) and `title` are for whoever shows the entry. Choice i of n is
    `choices[i % len(choices)]`."""

    prompt: str
    choices: tuple[Answer, ...]
    safe: Answer | None = None
    title: str = ""
    kind: str = "harmless"


def load_entries(file: Path | None = None) -> tuple[Entry, ...]:
    """All entries of a file; ConfigError names the file and the entry."""
    file = file or Path(__file__).with_name("replay.yaml")
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read as YAML or JSON") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("entries"), list):
        raise ConfigError(f"{file}: must be a mapping with a list `entries`")
    return tuple(_entry(item, f"{file}: entry {number}") for number, item in enumerate(raw["entries"], 1))


def _entry(raw: object, where: str) -> Entry:
    raw = _mapping(raw, {"prompt", "choices", "safe", "title", "kind"}, where)
    prompt, choices = raw.get("prompt"), raw.get("choices")
    if not isinstance(prompt, str) or not isinstance(choices, list) or not choices:
        raise ConfigError(f"{where}: needs `prompt`, a string, and `choices`, a list")
    return Entry(
        prompt.strip(),
        tuple(_answer(choice, where) for choice in choices),
        _answer(raw["safe"], where) if raw.get("safe") is not None else None,
        title=str(raw.get("title", "")),
        kind=str(raw.get("kind", "harmless")),
    )


def _answer(raw: object, where: str) -> Answer:
    if isinstance(raw, str):
        return Answer(raw.strip())
    raw = _mapping(raw, {"content", "reasoning", "refusal", "tool_calls"}, where)
    texts = {name: raw.get(name) for name in ("content", "reasoning", "refusal")}
    calls = raw.get("tool_calls") or []
    if not isinstance(calls, list) or not all(text is None or isinstance(text, str) for text in texts.values()):
        raise ConfigError(f"{where}: content, reasoning and refusal are strings, tool_calls a list")
    try:
        return Answer(
            **{name: text.strip() for name, text in texts.items() if isinstance(text, str)},
            tool_calls=tuple(_call(call, where) for call in calls),
        )
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _call(raw: object, where: str) -> ToolCall:
    raw = _mapping(raw, {"name", "arguments"}, where)
    return ToolCall(str(raw.get("name", "")), json.dumps(raw.get("arguments", {}), ensure_ascii=False))


def _mapping(raw: object, keys: set[str], where: str) -> dict[str, object]:
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: must be a mapping")
    if unknown := set(raw) - keys:
        raise ConfigError(f"{where}: unknown key {sorted(map(str, unknown))[0]!r}; known are {', '.join(sorted(keys))}")
    return raw


class ReplayUpstream:
    """`chunk`: characters a streamed piece has; `delay`: seconds between pieces."""

    def __init__(self, entries: Sequence[Entry], *, chunk: int = 6, delay: float = 0.0) -> None:
        self._entries = {entry.prompt: entry for entry in entries}
        self._chunk = chunk
        self._delay = delay

    async def send(self, path: str, body: bytes, headers: Mapping[str, str]) -> UpstreamResponse:
        if (listing := chat.models(path, MODEL, "guardrail")) is not None:
            return listing
        try:
            if path != "/v1/chat/completions":
                raise NotFound(f"the replay upstream has no {path}")
            request = chat.read(body)
        except GuardrailError as error:
            return chat.problem(error)
        answers = self._answers(request)
        if request.stream:
            return chat.streamed(self._stream(request, answers), sse=True)
        choices = [(_message(answer, index), answer.finish) for index, answer in enumerate(answers)]
        return chat.answer(Envelope(MODEL).plain(choices, chat.usage(*_tokens(request, answers))))

    async def aclose(self) -> None:
        """Nothing is held."""

    def _answers(self, request: ChatRequest) -> tuple[Answer, ...]:
        entry = self._entries.get(request.last_user.strip())
        if entry is None:
            return (Answer(_DEFAULT),) * request.n
        if entry.safe is not None and _MARKER in request.system.lower():
            return (entry.safe,) * request.n
        return tuple(entry.choices[index % len(entry.choices)] for index in range(request.n))

    async def _stream(self, request: ChatRequest, answers: Sequence[Answer]) -> AsyncGenerator[bytes, None]:
        frames = Frames(Envelope(MODEL), include_usage=request.include_usage)
        for index in range(len(answers)):
            yield frames.role(index)
        # Choices take turns, as they do on a real server.
        writing = [(index, _deltas(answer, index, self._chunk)) for index, answer in enumerate(answers)]
        while writing:
            for index, deltas in list(writing):
                if (delta := next(deltas, None)) is not None:
                    await asyncio.sleep(self._delay)
                    yield frames.delta(index, delta)
                else:
                    writing.remove((index, deltas))
                    yield frames.delta(index, {}, answers[index].finish)
        yield frames.end(*_tokens(request, answers))


def _message(answer: Answer, index: int) -> Json:
    message: Json = {"role": "assistant", "content": answer.content, "refusal": answer.refusal}
    if answer.reasoning is not None:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = [
            {
                "id": _call_id(index, at),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for at, call in enumerate(answer.tool_calls)
        ]
    return message


def _deltas(answer: Answer, index: int, size: int) -> Iterator[Json]:
    texts = {"reasoning_content": answer.reasoning, "content": answer.content, "refusal": answer.refusal}
    for name, text in texts.items():
        for piece in _pieces(text or "", size):
            yield {name: piece}
    for at, call in enumerate(answer.tool_calls):
        head = {"id": _call_id(index, at), "type": "function", "function": {"name": call.name, "arguments": ""}}
        yield {"tool_calls": [{"index": at, **head}]}
        for piece in _pieces(call.arguments, size):
            yield {"tool_calls": [{"index": at, "function": {"arguments": piece}}]}


def _pieces(text: str, size: int) -> Iterator[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


def _call_id(index: int, at: int) -> str:
    return f"call_replay_{index}_{at}"


def _tokens(request: ChatRequest, answers: Sequence[Answer]) -> tuple[int, int]:
    """Prompt and completion tokens, at four characters each: nothing here has a tokenizer."""
    prompt = sum(len(turn.text) for turn in request.turns)
    return prompt // 4 + 1, sum(answer.length() // 4 + 1 for answer in answers)
