"""The fields that coverage knows of are held to the vendors' own SDKs: a field of theirs without a cell fails here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel

from guardrail.wire.schema import Holds, read_schema

# What stands for all that is in it.
WHOLE = (Holds.ECHO, Holds.DEFINITION, Holds.JSON)

MODELS: list[tuple[str, str, Any]] = [
    ("chat", "plain", ChatCompletion),
    ("chat", "stream", ChatCompletionChunk),
    ("completions", "plain", Completion),
    ("completions", "stream", Completion),
    ("messages", "plain", Message),
    ("messages", "stream", RawMessageStreamEvent),
    ("responses", "plain", Response),
    ("responses", "stream", ResponseStreamEvent),
]


def bare(kind: Any) -> Any:
    return bare(get_args(kind)[0]) if get_origin(kind) is Annotated else kind


def tags(model: type[BaseModel]) -> list[str]:
    """The words by which a union knows this object."""
    field = model.model_fields.get("type")
    kinds = [bare(one) for one in (field.annotation, *get_args(field.annotation))] if field else []
    return [str(word) for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]


def leaves(kind: Any, path: str, above: tuple[Any, ...] = ()) -> Iterator[str]:
    """The paths of all that a type holds, as the schemas spell them."""
    kind = bare(kind)
    if get_origin(kind) in (Union, UnionType):
        for one in get_args(kind):
            yield from leaves(one, path, above)
    elif get_origin(kind) is list:
        yield from leaves(get_args(kind)[0], f"{path}[]", above)
    elif get_origin(kind) is dict:
        yield f"{path}{{}}"
    elif isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in above:
        words = tags(kind)
        if words:
            yield f"{path}.type"
        for name, field in kind.model_fields.items():
            for word in words or [""]:
                if not (words and name == "type"):
                    tag = f"<{word}>" if word else ""
                    yield from leaves(field.annotation, f"{path}{tag}.{field.alias or name}", (*above, kind))
    elif kind is not type(None):
        yield path


def known(name: str, form: str) -> tuple[set[str], list[str]]:
    """The paths of a schema, and those that stand for all that is in them."""
    paths, whole = set(), []
    for field in read_schema(name)[form]:
        tag = field.steps[0].tag
        for path in spelled(f"<{tag}>.{field.path}" if tag else f".{field.path}"):
            paths.add(path)
            if field.holds in WHOLE:
                whole.append(path)
    return paths, whole


def spelled(path: str) -> list[str]:
    """A path once for each of the tags it may have."""
    if not (found := re.search(r"<([^>]*\|[^>]*)>", path)):
        return [path]
    return [one for word in found[1].split("|") for one in spelled(path.replace(found[0], f"<{word}>", 1))]


def missing(name: str, form: str, model: Any) -> list[str]:
    paths, whole = known(name, form)
    starts = tuple(f"{path}{next_}" for path in whole for next_ in (".", "<", "[", "{"))
    return sorted({path for path in leaves(model, "") if path not in paths and not path.startswith(starts)})


@pytest.mark.parametrize(("name", "form", "model"), MODELS)
def test_every_field_of_the_sdk_has_a_cell(name: str, form: str, model: Any) -> None:
    assert missing(name, form, model) == []


class Dreaming(ChatCompletion):
    dream: str


def test_a_field_that_a_format_gains_is_missed() -> None:
    assert missing("chat", "plain", Dreaming) == [".dream"]
