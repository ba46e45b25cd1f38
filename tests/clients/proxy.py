"""The proxy that the clients talk to: the real one over real HTTP, whose scorer sees marks (tests/whole.py), before an
upstream that answers with the case that the model's name says (cases.json). Prints its URL, and ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from guardrail.conversation import JSON
from guardrail.stations import Limits
from guardrail.upstream import HTTPUpstream
from tests import test_anthropic as messages
from tests import whole as chat
from tests.test_contract import SAFE
from tests.wire import spoken as responses

CASES: JSON = json.loads((Path(__file__).parent / "cases.json").read_text())
HEARTBEAT = 0.1
PAUSE = 0.35


def say_chat(case: JSON, *, streamed: bool) -> bytes | list[bytes]:
    if "call" not in case:
        return chat.stream(case["text"], usage=True) if streamed else chat.completion(case["text"])
    call = {"id": "call_1", "type": "function", "function": {"name": "send", "arguments": json.dumps(case["call"])}}
    if not streamed:
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        return chat.whole([{"index": 0, "message": message, "finish_reason": "tool_calls"}])
    said = json.dumps(case["call"])
    function = {"name": "send", "arguments": ""}
    frames = [chat.chunk({"role": "assistant", "tool_calls": [{**call, "index": 0, "function": function}]})]
    for at in range(0, len(said), 4):
        piece = {"index": 0, "function": {"arguments": said[at : at + 4]}}
        frames.append(chat.chunk({"tool_calls": [piece]}))
    return [*frames, chat.chunk({}, finish="tool_calls"), chat.DONE]


def say_completion(case: JSON, *, streamed: bool) -> bytes | list[bytes]:
    def body(text: str, finish: str | None) -> bytes:
        choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
        head = {"id": "cmpl-1", "object": "text_completion", "created": 1700000000, "model": "fake"}
        return json.dumps({**head, "choices": [choice], **({} if streamed else {"usage": chat.USAGE})}).encode()

    text = case["text"]
    if not streamed:
        return body(text, "stop")
    pieces = [body(text[at : at + 7], None) for at in range(0, len(text), 7)]
    return [*(b"data: " + said + b"\n\n" for said in [*pieces, body("", "stop")]), chat.DONE]


def say_message(case: JSON, *, streamed: bool) -> bytes | list[bytes]:
    block = {**messages.calling(""), "input": case["call"]} if "call" in case else messages.text(case["text"])
    say = messages.stream if streamed else messages.whole
    return say(block, stop="tool_use" if "call" in case else "end_turn")


def say_response(case: JSON, *, streamed: bool) -> bytes | list[bytes]:
    item = responses.call(json.dumps(case["call"])) if "call" in case else responses.message(case["text"])
    return responses.stream(item) if streamed else responses.body(item)


SAYS = {
    "/v1/chat/completions": say_chat,
    "/v1/completions": say_completion,
    "/v1/messages": say_message,
    "/v1/responses": say_response,
}


async def answer(request: Request) -> Response:
    asked: dict[str, Any] = await request.json()
    if "anthropic-beta" in request.headers and request.url.query != "beta=true":
        return Response(b'{"type": "error", "error": {"type": "not_found_error", "message": "no beta here"}}', 404)
    # What a rewriter asks for is told from what the client asks by the instruction alone, as a model would.
    case = {"text": SAFE} if "safe completion" in json.dumps(asked) else CASES[asked["model"]]
    said = SAYS[request.url.path](case, streamed=bool(asked.get("stream")))
    if isinstance(said, bytes):
        return Response(said, media_type="application/json")
    return StreamingResponse(send(said, waits=asked["model"] == "waits"), media_type="text/event-stream")


async def send(frames: list[bytes], *, waits: bool) -> AsyncIterator[bytes]:
    for at, frame in enumerate(frames):
        await asyncio.sleep(PAUSE if waits and at in (0, len(frames) // 2) else 0)
        yield frame


def main() -> None:
    upstream = Starlette(routes=[Route(path, answer, methods=["POST"]) for path in SAYS])
    limits = Limits(heartbeat=HEARTBEAT)
    with chat.serving(upstream) as url, chat.proxy(HTTPUpstream(url), limits=limits) as guarded:
        print(guarded.url, flush=True)  # noqa: T201
        sys.stdin.read()


if __name__ == "__main__":
    main()
