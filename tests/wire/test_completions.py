"""Completions, the format before chat: every string of a choice is judged; what is written, an SDK can read."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion

from guardrail.conversation import JSON, Part, PartKind, Piece, Replacement, Request, StreamEvent, Usage
from guardrail.errors import BadRequest, UpstreamError
from guardrail.wire import completions
from guardrail.wire.sse import SSEReader, parse_frame, write_frame
from tests.whole import DONE, USAGE, FakeUpstream, Proxy, policy, proxy

TEXT, REASONING, UNKNOWN = PartKind.TEXT, PartKind.REASONING, PartKind.UNKNOWN
NOTE = {"decision": "d1", "choices": [{"index": 0, "mode": "safe_completion", "rule": "cyber"}]}
SAFE = Replacement("safe_completion", "cyber", "Only the outline.", "stop")
REFUSED = Replacement("refuse_with_redirection", "cyber", "I'm sorry.", "content_filter")


def request(**fields: Any) -> Request:
    return completions.read_request(json.dumps({"model": "m", "prompt": "Once", **fields}).encode())


def choice(text: str | None = "", index: int = 0, finish: str | None = None, **fields: Any) -> JSON:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish, **fields}


def body(*choices: JSON, **fields: Any) -> bytes:
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
    # Odd spacing on purpose: a clean body must leave as these bytes, not as equal JSON.
    return json.dumps({**head, "choices": list(choices), **fields}, indent=1).encode()


def frame(*choices: JSON, **fields: Any) -> bytes:
    return write_frame(json.dumps(json.loads(body(*choices, **fields))).encode())


def event(*choices: JSON, **fields: Any) -> StreamEvent:
    return completions.open_stream(request(n=3), 1).read(parse_frame(frame(*choices, **fields)))


# Requests

# body -> the param that the error names
BAD_REQUESTS: list[tuple[Any, str | None]] = [
    (b"", None),
    (b"[]", None),
    ({"prompt": "Once"}, "model"),
    # prompts
    ({"model": "m", "prompt": 5}, "prompt"),
    ({"model": "m", "prompt": {}}, "prompt"),
    ({"model": "m", "prompt": []}, "prompt"),
    ({"model": "m", "prompt": ["Once", 5]}, "prompt[1]"),
    ({"model": "m", "prompt": ["Once", None]}, "prompt[1]"),
    ({"model": "m", "prompt": [[1, 2], []]}, "prompt[1]"),
    ({"model": "m", "prompt": [[1, True]]}, "prompt[0]"),
    # how many
    ({"model": "m", "prompt": "Once", "n": 0}, "n"),
    ({"model": "m", "prompt": "Once", "n": 129}, "n"),
    ({"model": "m", "prompt": "Once", "best_of": "2"}, "best_of"),
    ({"model": "m", "prompt": "Once", "best_of": 129}, "best_of"),
    ({"model": "m", "prompt": ["Once"] * 129}, "n"),
    ({"model": "m", "prompt": ["Once"] * 65, "n": 2}, "n"),
    # the other fields
    ({"model": "m", "prompt": "Once", "stream": "yes"}, "stream"),
    ({"model": "m", "prompt": "Once", "stream_options": []}, "stream_options"),
    ({"model": "m", "prompt": "Once", "echo": "yes"}, "echo"),
    ({"model": "m", "prompt": "Once", "suffix": ["the end"]}, "suffix"),
    ({"model": "m", "prompt": "Once", "background": True}, "background"),
]


@pytest.mark.parametrize(("sent", "param"), BAD_REQUESTS)
def test_a_bad_request_names_its_field(sent: Any, param: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        completions.read_request(sent if isinstance(sent, bytes) else json.dumps(sent).encode())
    assert caught.value.param == param


# prompt, n -> choices, what each of them answers, what it answers instructed
PROMPTS: list[tuple[Any, int, list[str], Any]] = [
    ("Once", 1, ["Once"], "Be safe.\n\nOnce"),
    ("Once", 2, ["Once", "Once"], "Be safe.\n\nOnce"),
    (["Once"], 1, ["Once"], ["Be safe.\n\nOnce"]),
    (["Once", "Twice"], 1, ["Once", "Twice"], ["Be safe.\n\nOnce", "Be safe.\n\nTwice"]),
    (["Once", "Twice"], 2, ["Once", "Once", "Twice", "Twice"], ["Be safe.\n\nOnce", "Be safe.\n\nTwice"]),
    # the model begins by itself
    (None, 1, [""], "Be safe."),
    ("", 1, [""], "Be safe.\n\n"),
    # tokens: nothing to read, nothing to instruct
    ([7592, 102], 1, [""], [7592, 102]),
    ([7592], 2, ["", ""], [7592]),
    ([[7592, 102], [7592]], 1, ["", ""], [[7592, 102], [7592]]),
]


@pytest.mark.parametrize(("prompt", "n", "asked", "instructed"), PROMPTS)
def test_each_choice_answers_its_own_prompt(prompt: Any, n: int, asked: list[str], instructed: Any) -> None:
    read = request(prompt=prompt, n=n)
    assert [read.of(index).prompt for index in range(read.choices)] == asked
    assert json.loads(completions.instruct(read, "Be safe.")) == {"model": "m", "prompt": instructed, "n": n}
    for index, text in enumerate(asked):
        again = completions.ask_again(read.of(index), "Be safe.")
        if not text and prompt not in (None, ""):
            assert again is None
            continue
        assert again is not None
        assert json.loads(again)["prompt"] == (f"Be safe.\n\n{text}" if prompt is not None else "Be safe.")


def test_a_safe_completion_is_asked_for_as_one_plain_text() -> None:
    stripped = {"n": 2, "best_of": 3, "echo": True, "suffix": "!", "logprobs": 1, "stream": True, "stream_options": {}}
    read = request(prompt=["Once", "Twice"], max_tokens=9, stop=["."], **stripped)
    again = completions.ask_again(read.of(3), "Be safe.")
    assert again is not None
    assert json.loads(again) == {"model": "m", "prompt": "Be safe.\n\nTwice", "max_tokens": 9, "stop": ["."]}


def test_a_request_says_how_it_wants_its_answer() -> None:
    read = request(n=3, best_of=5, stream=True, stream_options={"include_usage": True}, seed=7, suffix="!")
    assert (read.model, read.choices, read.stream, read.include_usage) == ("m", 3, True, True)
    assert json.loads(read.raw)["seed"] == 7
    assert (request().choices, request().stream, request().include_usage) == (1, False, False)
    assert json.loads(request(store=True).raw)["store"] is False


# Answers

LONG, SHORT = "x" * 33, "y" * 32
SAID = {"tokens": ["On", "ce"], "token_logprobs": [-1, -2], "top_logprobs": [{"On": -1, "In": -2}], "text_offset": [0]}
# fields of the choice -> the parts
CHOICES: list[tuple[str, JSON, list[Part]]] = [
    ("a text", {"text": "Once"}, [Part(TEXT, "Once")]),
    ("no text", {"text": None}, []),
    ("its tokens", {"text": "Once", "logprobs": SAID}, [Part(TEXT, "Once")]),
    (
        "other tokens",
        {"text": "Once", "logprobs": {**SAID, "tokens": ["In ", LONG]}},
        [Part(TEXT, "Once"), Part(UNKNOWN, f"In {LONG}", "choice.logprobs.tokens")],
    ),
    (
        "more tokens than text",
        {"text": "Once", "logprobs": {**SAID, "tokens": ["On", "ce", LONG]}},
        [Part(TEXT, "Once"), Part(UNKNOWN, LONG, "choice.logprobs.tokens")],
    ),
    (
        "a long name for a token",
        {"text": "Once", "logprobs": {**SAID, "top_logprobs": [{LONG: -1}]}},
        [Part(TEXT, "Once"), Part(UNKNOWN, LONG, "choice.logprobs.top_logprobs[]")],
    ),
    ("no log probabilities", {"logprobs": LONG}, [Part(UNKNOWN, LONG, "choice.logprobs")]),
    ("tokens that are none", {"logprobs": {"tokens": LONG}}, [Part(UNKNOWN, LONG, "choice.logprobs.tokens")]),
    ("reasoning", {"text": "Once", "reasoning": "hm"}, [Part(REASONING, "hm", "reasoning"), Part(TEXT, "Once")]),
    ("unknown, long", {"vendor": {"a": LONG}}, [Part(UNKNOWN, LONG, "choice.vendor.a")]),
    ("unknown, short", {"stop_reason": SHORT}, []),
    ("a chat's message", {"message": {"content": LONG}}, [Part(UNKNOWN, LONG, "choice.message.content")]),
    (
        "words for a finish",
        {"finish_reason": f"{LONG} {LONG}"},
        [Part(UNKNOWN, f"{LONG} {LONG}", "choice.finish_reason")],
    ),
]


@pytest.mark.parametrize(("fields", "parts"), [case[1:] for case in CHOICES], ids=[case[0] for case in CHOICES])
def test_every_string_of_a_choice_is_a_part(fields: JSON, parts: list[Part]) -> None:
    (plain,) = completions.read_response(body({"index": 0, **fields})).choices
    assert sorted(plain.parts, key=str) == sorted(parts, key=str)
    streamed = event({"index": 0, **fields}).pieces
    # There, what is short in one event may be long in the end, so all of it is a piece.
    found = [Part(p.kind, p.text, p.key) for p in streamed if p.kind is not UNKNOWN or len(p.text) > 32]
    assert sorted(found, key=str) == sorted(parts, key=str)


GARBAGE: list[Any] = [
    *(b"", b"[]", b"<html>"),
    *({}, {"choices": {}}, {"choices": ["Once"]}, {"choices": [{"text": ["Once"]}]}, {"choices": [{"index": "0"}]}),
    {"choices": [choice("a"), choice("b")]},
]


@pytest.mark.parametrize("sent", GARBAGE)
def test_garbage_is_the_upstreams_fault(sent: Any) -> None:
    with pytest.raises(UpstreamError):
        completions.read_response(sent if isinstance(sent, bytes) else json.dumps(sent).encode())


@pytest.mark.parametrize("replacement", [SAFE, REFUSED])
def test_a_replaced_choice_keeps_its_index_and_nothing_else(replacement: Replacement) -> None:
    kept = choice("fine", finish="length", vendor=1)
    bad = choice("bad", 1, "stop", logprobs=SAID, vendor=1, reasoning="hm")
    read = completions.read_response(body(kept, bad, system_fingerprint="fp", usage=USAGE, echo_of=LONG))
    written = json.loads(completions.write_response(read, {1: replacement}, (), NOTE, Usage(5, 6)))
    replaced = {"index": 1, "text": replacement.text, "logprobs": None, "finish_reason": replacement.finish}
    left = {name: value for name, value in read.body.items() if name != "echo_of"}
    usage = {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    assert written == {**left, "choices": [kept, replaced], "usage": usage, "guardrail": NOTE}
    assert Completion.model_validate(written).choices[1].text == replacement.text


def test_dropping_reasoning_keeps_the_text() -> None:
    thought = choice("Once", finish="stop", reasoning="hm", logprobs=SAID)
    read = completions.read_response(body(thought, choice("Twice", 1, reasoning="mine")))
    written = json.loads(completions.write_response(read, {}, {0}, NOTE, None))["choices"]
    assert written == [choice("Once", finish="stop"), choice("Twice", 1, reasoning="mine")]


def test_an_answer_of_our_own_has_every_choice() -> None:
    raw = completions.make_response(request(prompt=["Once", "Twice"], n=2), REFUSED, NOTE, 9)
    parsed = Completion.model_validate_json(raw)
    assert [(one.index, one.text, one.finish_reason) for one in parsed.choices] == [
        (index, "I'm sorry.", "content_filter") for index in range(4)
    ]
    assert (parsed.id, parsed.object, parsed.created, json.loads(raw)["guardrail"]) == (
        "cmpl-d1",
        "text_completion",
        9,
        NOTE,
    )


# Streams


def test_an_event_says_what_it_adds() -> None:
    read = event(choice("a"), choice("b", 1, "length"), usage=USAGE)
    assert read.pieces == (Piece(0, TEXT, "a"), Piece(1, TEXT, "b"))
    assert (read.choices, read.finished, read.usage) == ((0, 1), (1,), Usage(10, 20))
    assert completions.open_stream(request(), 1).read(parse_frame(DONE)).done


THOUGHT = choice("a", reasoning="hm", logprobs=SAID)
# event, choices given up, reasoning given up -> the choices left, or None where nothing is
STRIPPED: list[tuple[str, StreamEvent, set[int], set[int], list[JSON] | None]] = [
    ("another choice", event(choice("a")), {1}, {1}, [choice("a")]),
    ("the only choice", event(choice("a")), {0}, set(), None),
    ("the only choice, with usage", event(choice("a"), usage=USAGE), {0}, set(), []),
    ("one of two", event(choice("a"), choice("b", 1, "stop")), {1}, set(), [choice("a")]),
    ("reasoning only", event(choice("", reasoning="hm")), set(), {0}, None),
    ("reasoning and its finish", event(choice("", 0, "stop", reasoning="hm")), set(), {0}, [choice("", 0, "stop")]),
    ("reasoning beside text", event(THOUGHT), set(), {0}, [choice("a")]),
    ("both", event(THOUGHT, choice("b", 1)), {1}, {0}, [choice("a")]),
]


@pytest.mark.parametrize(
    ("read", "gone", "reasoning", "left"), [case[1:] for case in STRIPPED], ids=[case[0] for case in STRIPPED]
)
def test_strip(read: StreamEvent, gone: set[int], reasoning: set[int], left: list[JSON] | None) -> None:
    stream = completions.open_stream(request(n=2), 1)
    stripped = stream.strip(read, gone, reasoning)
    if left is None:
        assert stripped is None
        return
    assert stripped is not None
    assert stripped.body is not None
    assert stripped.body["choices"] == left
    assert (stripped is read) is (read.body is not None and left == read.body["choices"])
    assert stripped == stream.read(parse_frame(stripped.raw))


@pytest.mark.parametrize("like", [False, True])
@pytest.mark.parametrize("replacement", [SAFE, REFUSED])
def test_a_replacement_streams_as_the_sdk_reads_it(replacement: Replacement, like: bool) -> None:
    stream = completions.open_stream(request(stream_options={"include_usage": True}), 9)
    if like:
        stream.read(parse_frame(frame(choice("a"), system_fingerprint="fp")))
    raw = stream.replace(2, replacement, NOTE, prefix="... ") + stream.end(NOTE, Usage(1, 2))
    *frames, done = SSEReader().push(raw)
    bodies = [json.loads(one.data or b"") for one in frames]
    end, counted = [Completion.model_validate(one) for one in bodies]
    (told,) = end.choices
    assert (told.index, told.text, told.finish_reason) == (2, f"... {replacement.text}", replacement.finish)
    assert {one.id for one in (end, counted)} == {"cmpl-1" if like else "cmpl-d1"}
    assert ["guardrail" in one for one in bodies] == [True, False]
    assert counted.usage is not None
    assert (counted.choices, counted.usage.total_tokens, done.data) == ([], 3, b"[DONE]")


# Through the proxy, with openai-python

CLEAN = "Once upon a time there was a fox who kept bees, and all went well. " * 6
MILD = f"{CLEAN}Then he built ⟦weapons 0.7⟧ in the shed. The bees did not like it."
BAD = f"{CLEAN}Then he built ⟦weapons 0.95⟧ and more."
MENDED = "Then he built a better hive."


def stream(text: str, index: int = 0, size: int = 7, logprobs: bool = False) -> list[bytes]:
    """A stream's events, less its end."""
    events = []
    for at in range(0, len(text), size):
        said = text[at : at + size]
        events.append(frame(choice(said, index, logprobs={"tokens": list(said)} if logprobs else None)))
    return [*events, frame(choice("", index, "stop"))]


def answering(*texts: str, safe: str = MENDED) -> FakeUpstream:
    """Says the texts, a choice each, plain or streamed; asked for a safe completion it says `safe`."""

    def answer(asked: dict[str, Any]) -> bytes | list[bytes]:
        if isinstance(asked["prompt"], str) and "safe completion" in asked["prompt"]:
            return body(choice(safe, finish="stop"), usage=USAGE)
        if asked.get("stream"):
            usage = [frame(usage=USAGE)] if asked.get("stream_options") else []
            return [*(event for at, text in enumerate(texts) for event in stream(text, at)), *usage, DONE]
        return body(*(choice(text, at, "stop") for at, text in enumerate(texts)), usage=USAGE)

    return FakeUpstream(answer)


def said(guarded: Proxy, *, streamed: bool, **extra: Any) -> tuple[list[str], list[str | None], Any]:
    """Texts and finish reasons by choice, and the `guardrail` object or None."""
    asked: Any = {"model": "m", "prompt": "Tell me", **extra}
    if not streamed:
        plain = guarded.client.completions.create(**asked)
        return (
            [one.text for one in plain.choices],
            [one.finish_reason for one in plain.choices],
            getattr(plain, "guardrail", None),
        )
    texts: dict[int, str] = {}
    finishes: dict[int, str | None] = {}
    note = None
    for part in guarded.client.completions.create(stream=True, **asked):
        note = getattr(part, "guardrail", None) or note
        for one in part.choices:
            texts[one.index] = texts.get(one.index, "") + one.text
            finishes[one.index] = one.finish_reason or finishes.get(one.index)
    return [texts[at] for at in sorted(texts)], [finishes[at] for at in sorted(finishes)], note


both = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])


@both
def test_a_clean_answer_leaves_byte_for_byte(streamed: bool) -> None:
    sent = [b": hello\n\n", *stream(CLEAN, logprobs=True), DONE] if streamed else body(choice(CLEAN, vendor=[1, 2.50]))
    with proxy(FakeUpstream(lambda _: sent)) as guarded:
        asked = {"model": "m", "prompt": "Tell me", "stream": streamed, "logprobs": 1}
        reply = httpx.post(f"{guarded.url}/v1/completions", json=asked)
        record = guarded.record(reply.headers["x-guardrail-decision"])
    assert reply.content == (b"".join(sent) if isinstance(sent, list) else sent)
    assert (record.endpoint, record.mode) == ("/v1/completions", "direct")


@both
def test_a_flagged_text_becomes_what_the_upstream_says_under_the_instruction(streamed: bool) -> None:
    upstream = answering(MILD)
    with proxy(upstream) as guarded:
        (text,), (finish,), note = said(guarded, streamed=streamed, echo=True)
    assert text.endswith(MENDED)
    assert "⟦" not in text
    assert finish == "stop"
    assert note["choices"] == [{"index": 0, "mode": "safe_completion", "rule": "weapons"}]
    assert upstream.requests[1]["prompt"].endswith("\n\nTell me")
    assert "echo" not in upstream.requests[1]


@both
def test_a_refusal_is_text_that_a_filter_ended(streamed: bool) -> None:
    with proxy(answering(BAD)) as guarded:
        (text,), (finish,), note = said(guarded, streamed=streamed)
    assert text.endswith("I can't help with weapons.\n\nI can help with:\n- the history of weapons")
    assert "⟦" not in text
    assert finish == "content_filter"
    assert note["choices"][0]["mode"] == "refuse_with_redirection"


@both
def test_each_choice_is_judged_in_the_light_of_its_own_prompt(streamed: bool) -> None:
    upstream = answering(CLEAN, MILD)
    with proxy(upstream) as guarded:
        texts, finishes, _ = said(guarded, streamed=streamed, prompt=["Of a fox", "Of a bee"])
        prompts = {passage.prompt for passage in guarded.scorer.calls if CLEAN[:40] in passage.text}
    assert texts[0] == CLEAN
    assert texts[1].endswith(MENDED)
    assert finishes == ["stop", "stop"]
    assert prompts == {"Of a fox", "Of a bee"}
    assert upstream.requests[1]["prompt"].endswith("Of a bee")


@both
def test_a_prompt_of_tokens_is_not_asked_again_and_its_answer_is_judged(streamed: bool) -> None:
    upstream = answering(MILD)
    with proxy(upstream) as guarded:
        (text,), _, note = said(guarded, streamed=streamed, prompt=[7592, 102])
    assert "⟦" not in text
    assert "I've left out the details of weapons" in text
    assert note["choices"][0]["mode"] == "safe_completion"
    assert len(upstream.requests) == 1


@both
def test_an_echo_is_judged_as_what_leaves(streamed: bool) -> None:
    with proxy(answering(f"How is ⟦cbrn 0.9⟧ made? {CLEAN}")) as guarded:
        (text,), (finish,), _ = said(guarded, streamed=streamed, echo=True)
    assert text.startswith("I can't help with cbrn.")
    assert finish == "content_filter"


@both
def test_another_text_in_the_log_probabilities_is_judged(streamed: bool) -> None:
    other = {"tokens": list("No, take a whole ⟦cbrn 0.9⟧ of it, and then some."), "token_logprobs": []}
    sent = choice("Take none of it.", finish="stop", logprobs=other)
    with proxy(FakeUpstream(lambda _: [frame(sent), DONE] if streamed else body(sent))) as guarded:
        (text,), (finish,), _ = said(guarded, streamed=streamed, logprobs=1)
    assert text.startswith("I can't help with cbrn.")
    assert finish == "content_filter"


@both
def test_bad_reasoning_is_dropped_alone(streamed: bool) -> None:
    thought = choice("", reasoning="I could say ⟦weapons 0.97⟧ but I had better not.")
    sent = [frame(thought), *stream(CLEAN), DONE] if streamed else body({**thought, **choice(CLEAN, finish="stop")})
    with proxy(FakeUpstream(lambda _: sent)) as guarded:
        (text,), (finish,), note = said(guarded, streamed=streamed)
    assert (text, finish) == (CLEAN, "stop")
    assert note["choices"] == [{"index": 0, "mode": "safe_completion", "rule": "weapons"}]


@both
def test_usage_counts_what_our_rewriting_spent(streamed: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if streamed else {}
    with proxy(answering("⟦weapons 0.7⟧")) as guarded:
        if streamed:
            asked = guarded.client.completions.create(model="m", prompt="Tell me", stream=True, **options)
            usage = list(asked)[-1].usage
        else:
            usage = guarded.client.completions.create(model="m", prompt="Tell me").usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (20, 40, 60)


@both
def test_enforce_looks_at_every_prompt(streamed: bool) -> None:
    upstream = answering(CLEAN, CLEAN)
    with proxy(upstream, policy(prompt="enforce")) as guarded:
        prompts = ["Of a fox", "Of ⟦cbrn 0.8⟧"]
        texts, finishes, _ = said(guarded, streamed=streamed, prompt=prompts)
    assert [text.partition(".")[0] for text in texts] == ["I can't help with cbrn"] * 2
    assert finishes == ["content_filter"] * 2
    assert upstream.requests == []


def test_enforce_instructs_every_prompt() -> None:
    upstream = answering(CLEAN, CLEAN)
    with proxy(upstream, policy(prompt="enforce")) as guarded:
        said(guarded, streamed=False, prompt=["Of a fox", "Of ⟦weapons 0.8⟧"])
    assert all("safe completion" in prompt for prompt in upstream.requests[0]["prompt"])


def test_an_error_of_the_sdk_s_own_kind() -> None:
    with proxy(answering(CLEAN)) as guarded, pytest.raises(openai.BadRequestError) as error:
        guarded.client.completions.create(model="m", prompt=[])
    assert error.value.param == "prompt"


def test_a_choice_nobody_asked_for_does_not_leave() -> None:
    with proxy(answering(CLEAN, CLEAN)) as guarded, pytest.raises(openai.InternalServerError):
        guarded.client.completions.create(model="m", prompt="Tell me")


@both
def test_an_error_in_the_middle_has_the_format_s_own_frame(streamed: bool) -> None:
    """A stream that breaks off is told in a frame, which the SDK raises."""
    upstream = FakeUpstream(lambda asked: stream(CLEAN)[:-1] if asked.get("stream") else body())
    with proxy(upstream) as guarded:
        if streamed:
            with pytest.raises(openai.APIError, match="ended before"):
                said(guarded, streamed=True)
        else:
            assert said(guarded, streamed=False)[0] == []
