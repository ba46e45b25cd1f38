"""What happens when things break: never a hang, never a pass in silence, always OpenAI's error shape."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from guardrail.config import Settings
from guardrail.conversation import JSON
from guardrail.errors import ScorerError
from guardrail.stations import Limits
from guardrail.upstream import HTTPUpstream, Timeouts
from tests.whole import DONE, FakeUpstream, chunk, completion, policy, proxy, serving, stream

ASK = [{"role": "user", "content": "Hello?"}]
PATH = "/v1/chat/completions"


def post(url: str, body: Any, **extra: Any) -> httpx.Response:
    return httpx.post(url + PATH, content=body if isinstance(body, bytes) else json.dumps(body), timeout=20, **extra)


def error_of(reply: httpx.Response) -> JSON:
    error: JSON = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def ask(**extra: Any) -> JSON:
    return {"model": "m", "messages": ASK, **extra}


# The caller's mistakes never reach the upstream.

MISTAKES: list[tuple[str, bytes | JSON, int, str | None]] = [
    ("not JSON", b"{", 400, None),
    ("not an object", b"[]", 400, None),
    ("not UTF-8", b"\xff\xfe", 400, None),
    ("nested too deep", b"[" * 100_000, 400, None),
    ("no messages", {"model": "m"}, 400, "messages"),
    ("messages of the wrong type", {"model": "m", "messages": "hi"}, 400, "messages"),
    ("a message that is no object", {"model": "m", "messages": ["hi"]}, 400, "messages[0]"),
    ("no model", {"messages": ASK}, 400, "model"),
    ("stream of the wrong type", ask(stream="yes"), 400, "stream"),
    ("n below 1", ask(n=0), 400, "n"),
    ("background", ask(background=True), 400, "background"),
    ("too large", b"{" + b" " * 3000 + b"}", 413, None),
]


def test_a_body_that_is_turned_away_unread_is_on_record() -> None:
    with proxy(FakeUpstream(lambda _: completion("hi")), settings=Settings(max_request_bytes=10)) as guarded:
        reply = post(guarded.url, ask())
        record = guarded.record(reply.headers["x-guardrail-decision"])
    assert (record.status, record.outcome) == (413, "rejected")


@pytest.mark.parametrize(("body", "status", "param"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_bad_request_is_told_and_not_forwarded(body: bytes | JSON, status: int, param: str | None) -> None:
    upstream = FakeUpstream(lambda _: completion("hi"))
    with proxy(upstream, settings=Settings(max_request_bytes=2000)) as guarded:
        limit = Settings(max_request_bytes=200_000) if body == b"[" * 100_000 else None
        if limit:
            with proxy(upstream, settings=limit) as roomy:
                reply = post(roomy.url, body)
        else:
            reply = post(guarded.url, body)
    assert reply.status_code == status
    assert error_of(reply)["param"] == param
    assert upstream.requests == []


def test_a_path_that_is_not_served_says_so() -> None:
    with proxy(FakeUpstream(lambda _: completion("hi"))) as guarded:
        reply = httpx.post(f"{guarded.url}/v1/embeddings", json={})
    assert reply.status_code == 404
    assert "/v1/embeddings" in error_of(reply)["message"]


# The upstream's errors pass with their status and body.


@pytest.mark.parametrize("streamed", [False, True])
def test_an_upstream_error_passes(streamed: bool) -> None:
    body = b'{"error": {"message": "slow down", "type": "requests", "param": null, "code": "rate_limit"}}'
    head = {"content-type": "application/json", "retry-after": "7", "x-ratelimit-limit": "9", "set-cookie": "a=b"}
    with proxy(FakeUpstream(lambda _: (429, head, body))) as guarded:
        reply = post(guarded.url, ask(stream=streamed))
    assert (reply.status_code, reply.content) == (429, body)
    assert (reply.headers["retry-after"], reply.headers["x-ratelimit-limit"]) == ("7", "9")
    assert "set-cookie" not in reply.headers


GARBAGE: list[tuple[str, Any]] = [
    ("nothing", b""),
    ("not JSON", b"<html>"),
    ("a list", b"[]"),
    ("no choices", b"{}"),
    ("choices of the wrong type", b'{"choices": "x"}'),
    ("content of the wrong type", b'{"choices": [{"index": 0, "message": {"content": 5}}]}'),
    ("one index twice", b'{"choices": [{"index": 0, "message": {}}, {"index": 0, "message": {}}]}'),
    ("a redirect", (302, {"location": "http://elsewhere.invalid/"}, b"")),
    ("endless", b" " * 50_000),
]


@pytest.mark.parametrize("answer", [row[1] for row in GARBAGE], ids=[row[0] for row in GARBAGE])
def test_a_garbage_answer_is_a_502(answer: Any) -> None:
    with proxy(FakeUpstream(lambda _: answer), limits=Limits(response_bytes=20_000)) as guarded:
        reply = post(guarded.url, ask())
    assert reply.status_code == 502
    assert error_of(reply)["type"] == "upstream_error"


STREAMS: list[tuple[str, list[bytes]]] = [
    ("nothing", []),
    ("half a frame", [chunk({"content": "Hi"}), b'data: {"choices": [{"ind']),
    ("not JSON", [chunk({"content": "Hi"}), b"data: <html>\n\n"]),
    ("no end", [chunk({"content": "Hi"})]),
    ("one of two without its end", [chunk({"content": "Hi"}, 0), chunk({"content": "Ho"}, 1), chunk({}, 0, "stop")]),
    ("endless", [chunk({"content": "word "})] * 400),
    ("one endless line", [b"data: " + b"x" * 30_000]),
]


@pytest.mark.parametrize("chunks", [row[1] for row in STREAMS], ids=[row[0] for row in STREAMS])
def test_a_garbage_stream_ends_in_an_error_frame(chunks: list[bytes]) -> None:
    upstream = FakeUpstream(lambda _: chunks)
    with proxy(upstream, limits=Limits(response_bytes=20_000)) as guarded:
        reply = post(guarded.url, ask(stream=True, n=2))
        record = guarded.record(reply.headers["x-guardrail-decision"])
    frames = [frame for frame in reply.text.split("\n\n") if frame]
    assert set(json.loads(frames[-1].removeprefix("data: "))["error"]) == {"message", "type", "param", "code"}
    assert record.outcome == "failed"
    assert upstream.open == 0


def test_nothing_listens_upstream() -> None:
    with proxy(HTTPUpstream("http://127.0.0.1:9")) as guarded:
        reply = post(guarded.url, ask())
    assert reply.status_code == 502


@pytest.mark.parametrize("streamed", [False, True])
def test_an_upstream_that_says_nothing_is_a_504(streamed: bool) -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if streamed:  # begins, and then stops
            head = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": b": wait\n\n", "more_body": True})
        await asyncio.sleep(1.0)

    with serving(silent) as url, proxy(HTTPUpstream(url, timeouts=Timeouts(read=0.3))) as guarded:
        reply = post(guarded.url, ask(stream=streamed))
    if streamed:
        assert json.loads(reply.text.split("\n\n")[-2].removeprefix("data: "))["error"]["code"] == "upstream_timeout"
    else:
        assert reply.status_code == 504
        assert error_of(reply)["code"] == "upstream_timeout"


# No score is not a pass.


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("failure", ["raises", "stalls", "bug"])
def test_without_a_score_an_answer_is_refused_like_any_other(streamed: bool, failure: str) -> None:
    upstream = FakeUpstream(lambda request: stream("Hello there.") if request.get("stream") else completion("Hello."))
    with proxy(upstream, limits=Limits(score_timeout=0.2)) as guarded:
        guarded.scorer.stall = 5 if failure == "stalls" else 0
        guarded.scorer.fail = {"raises": ScorerError("down"), "bug": RuntimeError("secret")}.get(failure)
        reply = post(guarded.url, ask(stream=streamed))
        record = guarded.record(reply.headers["x-guardrail-decision"])
    assert reply.status_code == 200
    assert "Hello" not in reply.text
    assert "I can't answer that right now." in reply.text
    assert '"content_filter"' in reply.text
    assert (record.verdict, record.mode) == ("error", "refuse_with_redirection")


@pytest.mark.parametrize("streamed", [False, True])
def test_on_error_unavailable_is_a_503(streamed: bool) -> None:
    upstream = FakeUpstream(lambda request: stream("Hello there.") if request.get("stream") else completion("Hello."))
    with proxy(upstream, policy(on_error="unavailable")) as guarded:
        guarded.scorer.fail = ScorerError("down")
        reply = post(guarded.url, ask(stream=streamed))
    assert "Hello" not in reply.text
    if streamed:
        assert "safeguard_unavailable" in reply.text
    else:
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "5"
        assert error_of(reply)["code"] == "safeguard_unavailable"


def test_a_client_that_leaves_during_a_rewrite_leaves_the_judgement_on_record() -> None:
    upstream = FakeUpstream(lambda _: completion("Take ⟦weapons 0.7⟧."))
    with proxy(upstream) as guarded:
        httpx.post(guarded.url + PATH, json=ask())
        upstream.pause = 1.5  # the answer comes at 1.5 s, its rewriting ends at 3 s
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(guarded.url + PATH, json=ask(), timeout=2.0)
        wait_for(lambda: len(guarded.kept) == 2)
        record = list(guarded.kept)[-1]
    assert (record.outcome, record.mode, record.rule) == ("client_left", "safe_completion", "weapons")


def test_on_error_pass_streamed_makes_up_no_score() -> None:
    with proxy(FakeUpstream(lambda _: stream("Hello there.")), policy(on_error="pass")) as guarded:
        guarded.scorer.fail = ScorerError("down")
        reply = post(guarded.url, ask(stream=True))
        record = guarded.record(reply.headers["x-guardrail-decision"])
    assert "Hello" in reply.text
    assert (record.verdict, record.value) == ("error", None)


def test_on_error_pass_is_the_operator_s_choice_and_is_recorded() -> None:
    body = completion("Hello.")
    with proxy(FakeUpstream(lambda _: body), policy(on_error="pass")) as guarded:
        guarded.scorer.fail = ScorerError("down")
        reply = post(guarded.url, ask())
        record = guarded.record(reply.headers["x-guardrail-decision"])
    assert reply.content == body
    assert record.verdict == "error"


@pytest.mark.parametrize("streamed", [False, True])
def test_audio_output_is_refused(streamed: bool) -> None:
    message = {"role": "assistant", "content": None, "audio": {"id": "a", "data": "aGk=", "transcript": "hi"}}

    def answer(request: JSON) -> bytes | list[bytes]:
        if request.get("stream"):
            return [chunk(message), chunk({}, finish="stop"), DONE]
        return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()

    with proxy(FakeUpstream(answer)) as guarded:
        reply = post(guarded.url, ask(stream=streamed))
    assert "aGk=" not in reply.text
    assert "I can't answer that right now." in reply.text


# Clients that leave


def test_a_client_that_hangs_up_stops_the_upstream_and_leaves_a_record() -> None:
    upstream = FakeUpstream(lambda _: stream("Words and words and words. " * 400))
    upstream.pause = 0.005
    with proxy(upstream) as guarded:
        with httpx.stream("POST", guarded.url + PATH, json=ask(stream=True), timeout=20) as reply:
            decision = reply.headers["x-guardrail-decision"]
            chunks = reply.iter_raw()
            next(chunks)
            assert upstream.open == 1
        wait_for(lambda: upstream.open == 0 and guarded.kept.find(decision) is not None)
        assert guarded.record(decision).outcome == "client_left"


def test_a_client_that_leaves_a_plain_request_stops_the_upstream() -> None:
    upstream = FakeUpstream(lambda _: completion("Hello."))
    upstream.pause = 3.0
    with proxy(upstream) as guarded:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(guarded.url + PATH, json=ask(), timeout=0.3)
        wait_for(lambda: upstream.open == 0 and len(guarded.kept) == 1, 1.5)
        (record,) = guarded.kept
        assert (record.outcome, record.mode) == ("client_left", "none")


def wait_for(true: Any, seconds: float = 3.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


# What travels


def test_only_listed_headers_go_upstream() -> None:
    upstream = FakeUpstream(lambda _: completion("Hello."))
    sent = {"authorization": "Bearer sk", "cookie": "a=b", "x-forwarded-for": "1.2.3.4", "openai-beta": "x"}
    with proxy(upstream) as guarded:
        post(guarded.url, ask(), headers={**sent, "content-type": "application/json"})
    kept = {"authorization": "Bearer sk", "openai-beta": "x", "content-type": "application/json"}
    assert {name: value for name, value in upstream.headers[0].items() if name != "traceparent"} == kept


def test_unknown_request_fields_reach_the_upstream_as_they_came() -> None:
    upstream = FakeUpstream(lambda _: completion("Hello."))
    body = ask(vendor_option={"a": [1, None]}, seed=7)
    with proxy(upstream) as guarded:
        post(guarded.url, body)
    assert upstream.requests == [body]


def test_nothing_is_stored_upstream() -> None:
    upstream = FakeUpstream(lambda _: completion("Hello."))
    with proxy(upstream) as guarded:
        post(guarded.url, ask(store=True))
    assert upstream.requests[0]["store"] is False


def test_the_operator_s_off_switch_relays_and_says_unscored() -> None:
    body = completion("Take ⟦cbrn 0.9⟧.")
    with proxy(FakeUpstream(lambda _: body), unjudged=True) as guarded:
        reply = post(guarded.url, ask())
        record = guarded.record(reply.headers["x-guardrail-decision"])
    assert reply.content == body
    assert record.verdict == "unscored"
