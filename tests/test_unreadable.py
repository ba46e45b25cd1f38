"""What cannot be read, through the whole proxy: refused, or judged as well as it can be where the operator wrote so."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from guardrail.policy import Policy
from guardrail.record import Record
from guardrail.telemetry import Telemetry
from tests.whole import DONE, UNREADABLE, FakeUpstream, chunk, completion, policy, proxy, stream, whole

PATH = "/v1/chat/completions"
ASK = [{"role": "user", "content": "How do I bake bread?"}]
TEXT = f"{UNREADABLE} Mix the flour with the water."


def answer(upstream: Any, chosen: Policy, *, streamed: bool) -> tuple[httpx.Response, Record, Telemetry]:
    with proxy(FakeUpstream(lambda _: upstream), chosen) as guarded:
        reply = httpx.post(guarded.url + PATH, json={"model": "m", "messages": ASK, "stream": streamed})
        return reply, guarded.record(reply.headers["x-guardrail-decision"]), guarded.telemetry


def count(telemetry: Telemetry, reason: str) -> bool:
    return f'guardrail_unreadable_total{{reason="{reason}"}} 1.0' in telemetry.render_metrics()[0].decode()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("on_error", ["refuse", "unavailable", "pass"])
def test_closed_refuses_whatever_an_error_would_do(streamed: bool, on_error: str) -> None:
    body = stream(TEXT) if streamed else completion(TEXT)
    reply, record, telemetry = answer(body, policy(on_error=on_error), streamed=streamed)
    assert reply.status_code == 200
    assert "flour" not in reply.text
    assert "I can't answer that right now." in reply.text
    assert '"content_filter"' in reply.text
    assert (record.verdict, record.unreadable) == ("unreadable", "language")
    assert (record.mode, record.rule, record.value) == ("refuse_with_redirection", None, None)
    assert count(telemetry, "language")


@pytest.mark.parametrize("streamed", [False, True])
def test_pass_lets_it_through_byte_for_byte_and_the_record_says_so(streamed: bool) -> None:
    body: Any = stream(TEXT) if streamed else completion(TEXT)
    reply, record, telemetry = answer(body, policy(unreadable="pass"), streamed=streamed)
    assert reply.content == (b"".join(body) if streamed else body)
    assert (record.verdict, record.unreadable, record.mode) == ("unreadable", "language", "direct")
    assert record.value == 0
    assert count(telemetry, "language")


@pytest.mark.parametrize("streamed", [False, True])
def test_pass_is_no_pass_for_what_is_over_its_band_all_the_same(streamed: bool) -> None:
    text = TEXT + " Take ⟦cbrn 0.9⟧."
    body = stream(text) if streamed else completion(text)
    reply, record, _ = answer(body, policy(unreadable="pass"), streamed=streamed)
    assert "⟦cbrn" not in reply.text
    assert (record.verdict, record.mode, record.rule) == ("unreadable", "refuse_with_redirection", "cbrn")


@pytest.mark.parametrize("streamed", [False, True])
def test_what_may_pass_unread_is_not_what_may_pass_unscored(streamed: bool) -> None:
    text = "Mix the flour with the water."
    with proxy(
        FakeUpstream(lambda _: stream(text) if streamed else completion(text)), policy(unreadable="pass")
    ) as one:
        one.scorer.fail = RuntimeError("down")
        reply = httpx.post(one.url + PATH, json={"model": "m", "messages": ASK, "stream": streamed})
    assert "flour" not in reply.text


@pytest.mark.parametrize("streamed", [False, True])
def test_thoughts_that_cannot_be_read_are_dropped_and_the_answer_stays(streamed: bool) -> None:
    message = {"role": "assistant", "reasoning_content": TEXT, "content": "Bake it."}
    body: Any = [chunk(message), chunk({}, finish="stop"), DONE]
    if not streamed:
        body = whole([{"index": 0, "message": message, "finish_reason": "stop"}])
    reply, record, _ = answer(body, policy(), streamed=streamed)
    assert "flour" not in reply.text
    assert "Bake it." in reply.text
    assert record.unreadable == "language"
