"""How a scorer's callers and its process speak: frames over a stream socket.

A frame is a head (kind, request id, bytes of JSON, bytes of arrays), then the JSON, then float32 arrays as they lie in
memory. Many requests are in flight on one connection, told apart by their ids. Values are written by their dataclass's
fields and read back by the fields' types, so what a `Score` gains travels without a word here; two ends whose fields
differ find out by `PROTOCOL`, which the process says first. Nothing in a frame can name code.
"""

from __future__ import annotations

import hashlib
import json
import struct
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum, IntEnum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from guardrail.scoring import Passage, Score, Span

MAX_FRAME = 64 << 20
HEAD = struct.Struct(">BQII")


class Kind(IntEnum):
    HELLO = 0
    SCORE = 1
    EMBED = 2
    CANCEL = 3
    RESULT = 4
    ERROR = 5


class FrameError(ValueError):
    """What came is no frame, or one that is too large. Its words hold nothing of what came."""


@dataclass(frozen=True, slots=True)
class Head:
    kind: Kind
    id: int
    text: int
    arrays: int

    @property
    def size(self) -> int:
        return self.text + self.arrays


def write_frame(kind: Kind, number: int, value: Any = None) -> bytes:
    """Raises `FrameError` if it is too large, or `value` holds what cannot be written."""
    arrays = bytearray()
    try:
        # Lone surrogates are part of what models say, and must keep their place: spans count characters.
        text = json.dumps(_plain(value, arrays), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        encoded = text.encode("utf-8", "surrogatepass")
    except (TypeError, ValueError) as error:
        raise FrameError(f"cannot be written ({type(error).__name__})") from None
    if len(encoded) + len(arrays) > MAX_FRAME:
        raise FrameError(f"is over the limit of {MAX_FRAME} bytes")
    return HEAD.pack(kind, number, len(encoded), len(arrays)) + encoded + arrays


def read_head(raw: bytes) -> Head:
    kind, number, text, arrays = HEAD.unpack(raw)
    if text + arrays > MAX_FRAME:
        raise FrameError(f"is over the limit of {MAX_FRAME} bytes")
    try:
        return Head(Kind(kind), number, text, arrays)
    except ValueError:
        raise FrameError("is of no known kind") from None


def read_body(head: Head, raw: bytes, kind: Any) -> Any:
    """The value in a frame's body, as the type `kind`."""
    try:
        plain = json.loads(raw[: head.text].decode("utf-8", "surrogatepass"))
        return _value(kind, plain, memoryview(raw)[head.text :])
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise FrameError(f"cannot be read ({type(error).__name__})") from None


def _plain(value: Any, arrays: bytearray) -> Any:
    if isinstance(value, np.ndarray):
        at = len(arrays)
        arrays += np.ascontiguousarray(value, dtype="<f4").tobytes()
        return [at, *value.shape]
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name), arrays) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(one, arrays) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one, arrays) for one in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _value(kind: Any, plain: Any, arrays: memoryview) -> Any:
    origin, of = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        (other,) = (one for one in of if one is not types.NoneType)
        return None if plain is None else _value(other, plain, arrays)
    if origin is np.ndarray:
        at, *shape = (_value(int, one, arrays) for one in plain)
        if at < 0 or any(length < 0 for length in shape):
            raise ValueError
        count = int(np.prod(shape, dtype=object))
        return np.frombuffer(arrays[at : at + 4 * count], dtype="<f4").astype(np.float32).reshape(shape)
    if origin is float and type(plain) in (float, int):
        return float(plain)
    if origin in (str, int, bool) and type(plain) is origin:
        return plain
    if isinstance(origin, type) and issubclass(origin, Enum):
        return origin(plain)
    if is_dataclass(origin) and isinstance(plain, dict):
        made: Any = origin
        return made(**{name: _value(hint, plain[name], arrays) for name, hint in _hints(made).items()})
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(plain, dict):
        return {name: _value(of[1], one, arrays) for name, one in plain.items()}
    if isinstance(origin, type) and issubclass(origin, Sequence) and isinstance(plain, list):
        read = [_value(of[0], one, arrays) for one in plain]
        return tuple(read) if origin is tuple else read
    raise TypeError


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _protocol() -> str:
    said = [[kind.__name__, *(f"{item.name}: {item.type}" for item in fields(kind))] for kind in (Passage, Score, Span)]
    return f"guardrail-scorer/1 {hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]}"


PROTOCOL = _protocol()
