"""From token ids to text: pure, fed one token at a time.

A byte-level BPE token is a run of bytes, and a character may be cut across tokens, so bytes go through an incremental
decoder. `Stops` then keeps back whatever could still become a stop sequence.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


def _byte_of_letter() -> dict[str, int]:
    """GPT-2's table of printable stand-ins for the 256 bytes, inverted."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(rest)}


_BYTES = _byte_of_letter()


def token_bytes(token: str) -> bytes:
    """The bytes a vocabulary entry stands for."""
    return bytes(_BYTES[letter] for letter in token)


class Utf8:
    """Bytes in, whole characters out; what is no UTF-8 becomes U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        return self._decoder.decode(data)

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class Stops:
    """Text in, text out up to the earliest stop sequence, which is itself left out."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.met = False

    def push(self, text: str) -> str:
        if self.met:
            return ""
        self._held += text
        found = [at for at in map(self._held.find, self._stops) if at >= 0]
        if found:
            out, self._held, self.met = self._held[: min(found)], "", True
            return out
        keep = max((self._beginning(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def flush(self) -> str:
        out, self._held = self._held, ""
        return out

    def _beginning(self, stop: str) -> int:
        """How many of the last characters held are the beginning of `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)
