"""The replay upstream: every entry, plain and streamed, says the same; what is asked for decides which answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import guardrail_embedded
import pytest
from guardrail_embedded.replay import Entry, ReplayUpstream, load_entries

from guardrail.errors import ConfigError
from guardrail.upstream import Upstream

ENTRIES = load_entries()
SYSTEM = {"role": "developer", "content": "Give a Safe Completion: high-level, non-operational."}


def ask(prompt: str, *, path: str = "/v1/chat/completions", chunk: int = 6, **more: object) -> tuple[int, bytes]:
    body = {"model": "any", "messages": [{"role": "user", "content": prompt}]} | more

    async def main() -> tuple[int, bytes]:
        response = await ReplayUpstream(ENTRIES, chunk=chunk).send(path, json.dumps(body).encode(), {})
        return response.status, b"".join([piece async for piece in response.stream])

    return asyncio.run(main())


def frames(body: bytes) -> list[dict[str, Any]]:
    lines = body.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def joined(body: bytes, n: int) -> list[dict[str, Any]]:
    """A stream's choices as plain messages with their finish."""
    out: list[dict[str, Any]] = [{} for _ in range(n)]
    for frame in frames(body):
        for choice in frame["choices"]:
            message = out[choice["index"]]
            for name, value in choice["delta"].items():
                if name == "tool_calls":
                    for call in value:
                        calls = message.setdefault(name, [])
                        if call["index"] == len(calls):
                            calls.append({"id": call["id"], "type": call["type"], "function": {"arguments": ""}})
                            calls[-1]["function"]["name"] = call["function"]["name"]
                        calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
                elif value is not None:
                    message[name] = message.get(name, "") + value if name != "role" else value
            if choice["finish_reason"]:
                message["finish"] = choice["finish_reason"]
    return out


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.title)
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_streamed_says_what_plain_says(entry: Entry, n: int, chunk: int) -> None:
    status, body = ask(entry.prompt, n=n)
    assert status == 200
    plain = json.loads(body)
    said = joined(ask(entry.prompt, n=n, stream=True, chunk=chunk)[1], n)
    assert len(plain["choices"]) == n
    for choice, message in zip(plain["choices"], said, strict=True):
        expected = {name: value for name, value in choice["message"].items() if value is not None}
        got = {name: value for name, value in message.items() if name != "finish" and value != ""}
        assert got == expected
        assert message["finish"] == choice["finish_reason"]


def test_the_file_has_what_the_demo_needs() -> None:
    kinds = [entry.kind for entry in ENTRIES]
    assert len({entry.prompt for entry in ENTRIES}) == len(ENTRIES) >= 10
    assert {"harmless", "dual-use", "malicious"} == set(kinds)
    assert sum(entry.safe is not None for entry in ENTRIES) >= 3
    assert any(choice.reasoning for entry in ENTRIES for choice in entry.choices)
    assert any(choice.tool_calls for entry in ENTRIES for choice in entry.choices)
    assert any(len(entry.choices) > 1 for entry in ENTRIES)


def content(body: bytes) -> str:
    text = json.loads(body)["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


def test_a_safe_completion_is_given_when_asked_for() -> None:
    for entry in ENTRIES:
        user = {"role": "user", "content": entry.prompt}
        asked = json.loads(ask("", messages=[SYSTEM, user])[1])["choices"][0]["message"]["content"]
        expected = entry.safe or entry.choices[0]
        assert asked == expected.content
    # The words in a user message instruct nobody.
    user = {"role": "user", "content": "safe completion"}
    entry = next(entry for entry in ENTRIES if entry.safe)
    assert content(ask("", messages=[user, {"role": "user", "content": entry.prompt}])[1]) == entry.choices[0].content


def test_an_unknown_prompt_gets_the_default() -> None:
    assert "replayed demo" in content(ask("anything else")[1])


def test_models_and_errors() -> None:
    status, body = ask("", path="/v1/models")
    assert (status, [model["id"] for model in json.loads(body)["data"]]) == (200, ["replay (demo)"])
    for path, more, expected, param in [
        ("/v1/other", {}, 404, None),
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "robot", "content": ""}]}, 400, "messages[0].role"),
        ("/v1/chat/completions", {"n": 0}, 400, "n"),
        ("/v1/chat/completions", {"n": True}, 400, "n"),
        ("/v1/chat/completions", {"stream": "yes"}, 400, "stream"),
        ("/v1/chat/completions", {"stop": ["a", ""]}, 400, "stop"),
        ("/v1/chat/completions", {"temperature": 3}, 400, "temperature"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            400,
            "messages[0].content[0]",
        ),
    ]:
        status, body = ask("x", path=path, **more)  # type: ignore[arg-type]
        error = json.loads(body)["error"]
        assert (status, error["param"], error["type"]) == (expected, param, "invalid_request_error")
        assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "list `entries`"),
        ("entries: [{prompt: a}]", "entry 1: needs"),
        ("entries: [{prompt: a, choices: [b]}, {prompt: a, choises: [b]}]", "entry 2: unknown key 'choises'"),
        ("entries: [{prompt: a, choices: [{reasoning: b}]}]", "needs content"),
        ("entries: [", "cannot be read"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_entries(file)
    assert "mine.yaml" in caught.value.message
    assert says in caught.value.message


def test_registers_both_upstreams(tmp_path: Path) -> None:
    class Registry:
        def __init__(self) -> None:
            self.made: dict[str, Callable[..., Upstream]] = {}

        def upstream(self, name: str, factory: Callable[..., Upstream], /) -> None:
            self.made[name] = factory

    registry = Registry()
    guardrail_embedded.register(registry)
    assert set(registry.made) == {"embedded", "replay"}
    file = tmp_path / "mine.json"
    file.write_text('{"entries": [{"prompt": "a", "choices": ["b"]}]}')
    assert isinstance(registry.made["replay"](argument=str(file)), ReplayUpstream)
    with pytest.raises(ConfigError):
        registry.made["embedded"](argument="x")
