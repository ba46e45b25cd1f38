"""The wire formats, one module each. A new format is a file and a line in `FORMATS`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from guardrail.conversation import JSON, Replacement, Replacements, Request, Response, StreamEvent, Usage
from guardrail.wire import chat
from guardrail.wire.sse import Frame


class WireFormat(Protocol):
    """What a format's module offers. Readers raise `BadRequest` or `UpstreamError`; writers never fail."""

    PATH: str
    DONE: bytes

    def read_request(self, raw: bytes) -> Request: ...

    def instruct(self, request: Request, instruction: str) -> bytes: ...

    def ask_again(self, request: Request, instruction: str) -> bytes: ...

    def read_response(self, raw: bytes) -> Response: ...

    def write_response(
        self,
        response: Response,
        replaced: Replacements,
        unreasoned: Collection[int],
        note: JSON,
        usage: Usage | None,
    ) -> bytes: ...

    def make_response(self, request: Request, replacement: Replacement, note: JSON, created: int) -> bytes: ...

    def read_event(self, frame: Frame) -> StreamEvent: ...

    def strip(self, event: StreamEvent, choices: Collection[int], reasoning: Collection[int]) -> StreamEvent | None: ...

    def noted(self, event: StreamEvent, note: JSON) -> StreamEvent: ...

    def with_usage(self, event: StreamEvent, usage: Usage) -> StreamEvent: ...

    def replace_events(
        self,
        like: StreamEvent | None,
        request: Request,
        index: int,
        replacement: Replacement,
        note: JSON,
        *,
        created: int,
        begun: bool,
        prefix: str = "",
    ) -> list[bytes]: ...

    def usage_event(
        self, like: StreamEvent | None, request: Request, usage: Usage, created: int, note: JSON
    ) -> bytes: ...


FORMATS: Mapping[str, WireFormat] = {chat.PATH: chat}
