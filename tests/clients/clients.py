"""Every Python client, plain and streamed, in every case of cases.json. Run by scripts/clients.

A client is a function of a case's name: it asks the proxy as its own documentation says to, and tells what a program
that uses it would see. `check` knows what that should be.
"""

# ruff: noqa: T201

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it looks for prices on the network

import anthropic
import litellm
import openai
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI, OpenAI
from langchain_openai.chat_models.base import OpenAIRefusalError
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

URL = sys.argv[1]
V1 = f"{URL}/v1"
CASES = json.loads((Path(__file__).parent / "cases.json").read_text())
SAFE = "Use a certified igniter and follow the maker's leaflet."
REFUSAL = "I can't help with"
ASK = "How do I light it?"
ASKED: Any = [{"role": "user", "content": ASK}]
SCHEMA = {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"], "additionalProperties": False}
TOOL: Any = {"name": "send", "description": "Sends a card.", "parameters": SCHEMA, "strict": True}
TOOLS: Any = [{"type": "function", "function": TOOL}]

TEXTS = ("clean", "waits", "flagged", "flagged-midway", "refused", "refused-midway", "crisis")
CALLS = ("call", "call-refused")
OBJECTS = ("object", "object-refused")


class Answer(BaseModel):
    how: str


@dataclass
class Seen:
    """What a program sees. `refusal` is a refusal in a place of its own, apart from the text."""

    text: str = ""
    refusal: str = ""
    finish: str | None = None
    calls: list[dict[str, Any]] = field(default_factory=list)
    object: dict[str, Any] | None = None


def check(case: str, seen: Seen, hides: tuple[str, ...] = ()) -> None:
    """Raises `AssertionError` where the client shows something else than it should."""
    said, shows = CASES[case], CASES[case]["shows"]
    assert "⟦" not in repr(seen), "flagged text"
    if shows == "whole":
        assert seen.text == said["text"], "not the text"
    elif shows == "safe completion":
        assert seen.text.endswith(SAFE), "no safe completion"
    elif shows == "crisis":
        assert seen.text.startswith(REFUSAL), "no visible text"
    elif shows == "refusal" and case not in hides:
        assert REFUSAL in seen.text + seen.refusal, "no refusal"
    elif shows == "refusal":
        assert seen == Seen(finish="stop"), "more than it showed"
    assert seen.calls == ([said["call"]] if shows == "call" else []), "not the calls"
    assert seen.object == (json.loads(said["text"]) if shows == "object" else None), "not the object"


# openai-python

openai_client = openai.OpenAI(base_url=V1, api_key="sk-test", max_retries=0, timeout=20)


def openai_chat(case: str) -> Seen:
    more = {"tools": TOOLS} if case in CALLS else {}
    if case in OBJECTS:
        body: Any = openai_client.chat.completions.parse(model=case, messages=ASKED, response_format=Answer)
    else:
        body = openai_client.chat.completions.create(model=case, messages=ASKED, **more)
    return of_choice(body.choices[0])


def openai_chat_stream(case: str) -> Seen:
    if case in (*OBJECTS, *CALLS):  # the SDK's own accumulator, with strict tools
        more: Any = {"response_format": Answer} if case in OBJECTS else {"tools": TOOLS}
        with openai_client.chat.completions.stream(model=case, messages=ASKED, **more) as stream:
            for _ in stream:
                pass
            return of_choice(stream.get_final_completion().choices[0])
    seen = Seen()
    for event in openai_client.chat.completions.create(model=case, messages=ASKED, stream=True):
        for choice in event.choices:
            seen.text += choice.delta.content or ""
            seen.refusal += choice.delta.refusal or ""
            seen.finish = choice.finish_reason or seen.finish
    return seen


def of_choice(choice: Any) -> Seen:
    message = choice.message
    calls = [json.loads(call.function.arguments) for call in message.tool_calls or []]
    parsed = getattr(message, "parsed", None)
    done = parsed.model_dump() if parsed else None
    return Seen(message.content or "", message.refusal or "", choice.finish_reason, calls, done)


RESPONSE_TOOLS: Any = [{"type": "function", **TOOL}]


def openai_responses(case: str) -> Seen:
    if case in OBJECTS:
        return of_response(openai_client.responses.parse(model=case, input=ASK, text_format=Answer))
    more = {"tools": RESPONSE_TOOLS} if case in CALLS else {}
    return of_response(openai_client.responses.create(model=case, input=ASK, **more))


def openai_responses_stream(case: str) -> Seen:
    more: Any = {"tools": RESPONSE_TOOLS} if case in CALLS else {"text_format": Answer} if case in OBJECTS else {}
    with openai_client.responses.stream(model=case, input=ASK, **more) as stream:
        for _ in stream:
            pass
        return of_response(stream.get_final_response())


def of_response(response: Any) -> Seen:
    parts = [part for item in response.output if item.type == "message" for part in item.content]
    refusal = "".join(part.refusal for part in parts if part.type == "refusal")
    calls = [json.loads(item.arguments) for item in response.output if item.type == "function_call"]
    parsed = getattr(response, "output_parsed", None)
    return Seen(response.output_text, refusal, response.status, calls, parsed.model_dump() if parsed else None)


def openai_completions(case: str) -> Seen:
    choice = openai_client.completions.create(model=case, prompt=ASK).choices[0]
    return Seen(choice.text, finish=choice.finish_reason)


def openai_completions_stream(case: str) -> Seen:
    seen = Seen()
    for event in openai_client.completions.create(model=case, prompt=ASK, stream=True):
        seen.text += event.choices[0].text
        seen.finish = event.choices[0].finish_reason or seen.finish
    return seen


def openai_moderations(case: str) -> Seen:
    result = openai_client.moderations.create(model=case, input=CASES[case]["text"]).results[0]
    assert result.flagged == result.categories.illicit == (CASES[case]["shows"] != "whole")
    return {"whole": Seen(CASES[case]["text"]), "refusal": Seen(REFUSAL), "crisis": Seen(REFUSAL)}.get(
        CASES[case]["shows"], Seen(SAFE)
    )


# anthropic-python

claude = anthropic.Anthropic(base_url=URL, api_key="sk-ant-test", max_retries=0, timeout=20)
CLAUDE_TOOLS: Any = [{"name": "send", "description": "Sends a card.", "input_schema": SCHEMA}]


def claude_ask(case: str) -> dict[str, Any]:
    tools = {"tools": CLAUDE_TOOLS} if case in CALLS else {}
    return {"model": case, "max_tokens": 99, "messages": ASKED, **tools}


def claude_messages(case: str) -> Seen:
    return of_message(claude.messages.create(**claude_ask(case)))


def claude_beta(case: str) -> Seen:
    """With `?beta=true`, as older versions of the SDK ask by themselves; without it the upstream answers 404."""
    beta: Any = {"betas": ["context-management-2025-06-27"], "extra_query": {"beta": "true"}}
    return of_message(claude.beta.messages.create(**claude_ask(case), **beta))


def claude_events(case: str) -> Seen:
    seen, said = Seen(), ""
    for event in claude.messages.create(**claude_ask(case), stream=True):
        if event.type == "content_block_delta":
            seen.text += getattr(event.delta, "text", "")
            said += getattr(event.delta, "partial_json", "")
        elif event.type == "message_delta":
            seen.finish = event.delta.stop_reason
    seen.calls = [json.loads(said)] if said else []
    return seen


def claude_stream(case: str) -> Seen:
    with claude.messages.stream(**claude_ask(case)) as stream:
        text = "".join(stream.text_stream)
        seen = of_message(stream.get_final_message())
    assert text == seen.text
    return seen


def of_message(message: Any) -> Seen:
    text = "".join(block.text for block in message.content if block.type == "text")
    calls = [block.input for block in message.content if block.type == "tool_use"]
    return Seen(text, finish=message.stop_reason, calls=calls)


# LangChain


def langchain(make: Callable[[str], Any], *, streamed: bool = False) -> Callable[[str], Seen]:
    def ask(case: str) -> Seen:
        model = make(case)
        if case in OBJECTS:
            # With the raw answer beside it, as a program that expects refusals asks for it.
            answered = model.with_structured_output(Answer, include_raw=True, method="json_schema")
            try:
                got = list(answered.stream(ASK)) if streamed else [answered.invoke(ASK)]
            except (
                OpenAIRefusalError
            ) as error:  # LangChain's own word for a refusal, in streams also beside raw answers
                return Seen(refusal=str(error), finish=type(error).__name__)
            merged = {name: value for piece in got for name, value in piece.items()}
            seen = of_langchain(merged["raw"])
            seen.object = merged["parsed"].model_dump() if merged.get("parsed") else None
            return seen
        if case in CALLS:
            model = model.bind_tools([{"name": "send", "description": "Sends a card.", "input_schema": SCHEMA}])
        if not streamed:
            return of_langchain(model.invoke(ASK))
        whole: Any = None
        for piece in model.stream(ASK):
            whole = piece if whole is None else whole + piece
        return of_langchain(whole)

    return ask


def of_langchain(message: Any) -> Seen:
    blocks = message.content if isinstance(message.content, list) else []
    refusal = "".join(block.get("refusal", "") for block in blocks if isinstance(block, dict))
    meta = message.response_metadata
    finish = meta.get("finish_reason") or meta.get("stop_reason") or meta.get("status")
    calls = [call["args"] for call in message.tool_calls]
    assert not message.invalid_tool_calls
    return Seen(str(message.text), refusal or message.additional_kwargs.get("refusal") or "", finish, calls)


def langchain_openai(case: str) -> Any:
    return ChatOpenAI(model=case, base_url=V1, api_key="sk-test", max_retries=0, timeout=20)


def langchain_responses(case: str) -> Any:
    return ChatOpenAI(model=case, base_url=V1, api_key="sk-test", max_retries=0, timeout=20, use_responses_api=True)


def langchain_anthropic(case: str) -> Any:
    return ChatAnthropic(model=case, base_url=URL, api_key="sk-ant-test", max_retries=0, timeout=20, max_tokens=99)


def langchain_completions(case: str) -> Seen:
    return Seen(OpenAI(model=case, base_url=V1, api_key="sk-test", max_retries=0).invoke(ASK))


def langchain_completions_stream(case: str) -> Seen:
    return Seen("".join(OpenAI(model=case, base_url=V1, api_key="sk-test", max_retries=0).stream(ASK)))


# LlamaIndex


def llama_index(case: str, *, is_chat: bool = True) -> OpenAILike:
    kind: Any = {"is_chat_model": is_chat, "is_function_calling_model": is_chat}
    return OpenAILike(model=case, api_base=V1, api_key="sk-test", max_retries=0, timeout=20, **kind)


def send(to: str) -> str:
    """Sends a card."""
    return to


CARD = FunctionTool.from_defaults(send)


def llama_index_chat(case: str) -> Seen:
    model = llama_index(case)
    if case in CALLS:
        return of_llama_index(model, model.chat_with_tools([CARD], user_msg=ASK))
    return of_llama_index(model, model.chat([ChatMessage(role="user", content=ASK)]))


def llama_index_chat_stream(case: str) -> Seen:
    model = llama_index(case)
    if case in CALLS:
        return of_llama_index(model, list(model.stream_chat_with_tools([CARD], user_msg=ASK))[-1])
    pieces = list(model.stream_chat([ChatMessage(role="user", content=ASK)]))
    seen = of_llama_index(model, pieces[-1])
    assert "".join(piece.delta or "" for piece in pieces) == seen.text
    return seen


def of_llama_index(model: Any, response: Any) -> Seen:
    calls = model.get_tool_calls_from_response(response, error_on_no_tool_call=False)
    return Seen(response.message.content or "", calls=[call.tool_kwargs for call in calls])


def llama_index_complete(case: str) -> Seen:
    return Seen(llama_index(case, is_chat=False).complete(ASK).text)


def llama_index_complete_stream(case: str) -> Seen:
    return Seen("".join(piece.delta or "" for piece in llama_index(case, is_chat=False).stream_complete(ASK)))


# litellm's SDK


def litellm_as(provider: str, **where: Any) -> Callable[..., dict[str, Any]]:
    def asking(case: str, **more: Any) -> dict[str, Any]:
        tools = {"tools": TOOLS} if case in CALLS else {"response_format": Answer} if case in OBJECTS else {}
        return {"model": f"{provider}/{case}", "messages": ASKED, "timeout": 20, **where, **tools, **more}

    return asking


litellm_openai = litellm_as("openai", api_base=V1, api_key="sk-test", max_retries=0)
litellm_anthropic = litellm_as("anthropic", api_base=URL, api_key="sk-ant-test", max_retries=0)


def litellm_plain(asking: Callable[..., dict[str, Any]]) -> Callable[[str], Seen]:
    return lambda case: of_litellm(litellm.completion(**asking(case)), case)


def litellm_stream(asking: Callable[..., dict[str, Any]]) -> Callable[[str], Seen]:
    async def ask(case: str) -> Seen:
        stream: Any = await litellm.acompletion(**asking(case, stream=True))
        return of_litellm(litellm.stream_chunk_builder([piece async for piece in stream]), case)

    return lambda case: asyncio.run(ask(case))


def of_litellm(body: Any, case: str) -> Seen:
    choice = body.choices[0]
    message, finish = choice.message, choice.finish_reason
    calls = [json.loads(call.function.arguments) for call in message.tool_calls or []]
    refusal = getattr(message, "refusal", None) or (message.provider_specific_fields or {}).get("refusal") or ""
    done = json.loads(message.content) if case == "object" else None
    return Seen(message.content or "", refusal, finish, calls, done)


def litellm_responses(case: str) -> Seen:
    where: Any = {"api_base": V1, "api_key": "sk-test"}
    return of_response(litellm.responses(model=f"openai/{case}", input=ASK, timeout=20, **where))


def litellm_responses_stream(case: str) -> Seen:
    where: Any = {"api_base": V1, "api_key": "sk-test"}
    events = list(litellm.responses(model=f"openai/{case}", input=ASK, stream=True, timeout=20, **where))
    return of_response(events[-1].response)


CLIENTS: list[tuple[str, Callable[[str], Seen], tuple[str, ...]]] = [
    ("openai chat", openai_chat, TEXTS + CALLS + OBJECTS),
    ("openai chat, streamed", openai_chat_stream, TEXTS + CALLS + OBJECTS),
    ("openai responses", openai_responses, TEXTS + CALLS + OBJECTS),
    ("openai responses, streamed", openai_responses_stream, TEXTS + CALLS + OBJECTS),
    ("openai completions", openai_completions, TEXTS),
    ("openai completions, streamed", openai_completions_stream, TEXTS),
    ("openai moderations", openai_moderations, TEXTS),
    ("anthropic messages", claude_messages, TEXTS + CALLS),
    ("anthropic messages, stream=True", claude_events, TEXTS + CALLS),
    ("anthropic messages.stream", claude_stream, TEXTS + CALLS),
    ("anthropic beta.messages", claude_beta, TEXTS + CALLS),
    ("langchain-openai", langchain(langchain_openai), TEXTS + CALLS + OBJECTS),
    ("langchain-openai, streamed", langchain(langchain_openai, streamed=True), TEXTS + CALLS + OBJECTS),
    ("langchain-openai responses", langchain(langchain_responses), TEXTS + CALLS + OBJECTS),
    ("langchain-openai responses, streamed", langchain(langchain_responses, streamed=True), TEXTS + CALLS),
    ("langchain-openai completions", langchain_completions, TEXTS),
    ("langchain-openai completions, streamed", langchain_completions_stream, TEXTS),
    ("langchain-anthropic", langchain(langchain_anthropic), TEXTS + CALLS),
    ("langchain-anthropic, streamed", langchain(langchain_anthropic, streamed=True), TEXTS + CALLS),
    ("llama-index chat", llama_index_chat, TEXTS + CALLS),
    ("llama-index chat, streamed", llama_index_chat_stream, TEXTS + CALLS),
    ("llama-index complete", llama_index_complete, TEXTS),
    ("llama-index complete, streamed", llama_index_complete_stream, TEXTS),
    ("litellm openai", litellm_plain(litellm_openai), TEXTS + CALLS + OBJECTS),
    ("litellm openai, streamed", litellm_stream(litellm_openai), TEXTS + CALLS + OBJECTS),
    ("litellm anthropic", litellm_plain(litellm_anthropic), TEXTS + CALLS),
    ("litellm anthropic, streamed", litellm_stream(litellm_anthropic), TEXTS + CALLS),
    ("litellm responses", litellm_responses, TEXTS),
    ("litellm responses, streamed", litellm_responses_stream, TEXTS),
]


# Refusals that a client shows nobody, whoever refused: litellm drops a chunk that has `delta.refusal` alone.
HIDES = {"litellm openai, streamed": ("call-refused", "object-refused")}


def main() -> None:
    passed = failed = 0
    for name, ask, cases in CLIENTS:
        refusals, started = set(), time.monotonic()
        for case in cases:
            try:
                seen = ask(case)
                check(case, seen, HIDES.get(name, ()))
            except Exception as error:  # a client that raises is what is looked for
                failed += 1
                print(f"FAILED  {name}: {case}: {type(error).__name__}: {error}")
                if not isinstance(error, AssertionError):
                    traceback.print_exc()
                continue
            passed += 1
            if CASES[case]["shows"] == "refusal":
                where = "text" if REFUSAL in seen.text else "refusal" if seen.refusal else "hidden"
                refusals.add(f"{where} ({seen.finish})")
        shown = f"a refusal is {' or '.join(sorted(refusals))}" if refusals else ""
        print(f"{name:40} {time.monotonic() - started:5.1f}s  {shown}", flush=True)
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
