"""Bytes in, frames out: whole, byte by byte, and cut at random (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.errors import UpstreamError
from guardrail.wire.sse import Frame, SSEReader, parse_frame, write_frame

# what arrives -> the frames' (event, data); every stream here ends in a whole frame
STREAMS: list[tuple[str, bytes, list[tuple[str, bytes | None]]]] = [
    # line ends
    ("LF", b"data: a\n\ndata: b\n\n", [("", b"a"), ("", b"b")]),
    ("CRLF", b"data: a\r\n\r\ndata: b\r\n\r\n", [("", b"a"), ("", b"b")]),
    ("CR", b"data: a\r\rdata: b\r\r:\n\n", [("", b"a"), ("", b"b"), ("", None)]),
    ("mixed", b"data: a\r\n\ndata: b\n\r\ndata: c\r\r\n", [("", b"a"), ("", b"b"), ("", b"c")]),
    ("one line end is not two", b"data: a\r\ndata: b\r\n\r\n", [("", b"a\nb")]),
    # fields
    ("no space after the colon", b"data:a\n\n", [("", b"a")]),
    ("only one space is dropped", b"data:  a\n\n", [("", b" a")]),
    ("a colon in the value", b"data: a: b\n\n", [("", b"a: b")]),
    ("no colon", b"data\n\n", [("", b"")]),
    ("data of several lines", b"data: {\ndata:  1}\n\n", [("", b"{\n 1}")]),
    ("an event name", b"event: delta\ndata: a\n\n", [("delta", b"a")]),
    ("id and retry are carried, not read", b"id: 7\nretry: 9\ndata: a\n\n", [("", b"a")]),
    ("another field", b"datum: a\n\n", [("", None)]),
    # frames without data
    ("a comment", b": ping\n\ndata: a\n\n", [("", None), ("", b"a")]),
    ("a comment within", b": ping\ndata: a\n\n", [("", b"a")]),
    ("blank lines before", b"\n\n\ndata: a\n\n", [("", None), ("", b"a")]),
    # encodings
    ("a byte order mark", b"\xef\xbb\xbfdata: a\n\n", [("", b"a")]),
    ("UTF-8", "data: Ünï, 你好 🎉\n\n".encode(), [("", "Ünï, 你好 🎉".encode())]),
    ("bytes that are no text", b"data: \xff\x00\n\n", [("", b"\xff\x00")]),
]


def read(*chunks: bytes) -> list[Frame]:
    reader = SSEReader()
    return [frame for chunk in chunks for frame in reader.push(chunk)]


@pytest.mark.parametrize(("stream", "frames"), [case[1:] for case in STREAMS], ids=[case[0] for case in STREAMS])
def test_a_stream_is_read_whole_and_byte_by_byte(stream: bytes, frames: list[tuple[str, bytes | None]]) -> None:
    for chunks in ([stream], [stream[at : at + 1] for at in range(len(stream))]):
        found = read(*chunks)
        assert [(frame.event, frame.data) for frame in found] == frames
        assert b"".join(frame.raw for frame in found) == stream


LINES = st.sampled_from([b"data: a", b"data:", b"data: \xe4\xbd\xa0", b": c", b"event: e", b"id: 1", b"", b"x"])
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(LINES, ENDS), max_size=20), st.lists(st.integers(0, 200), max_size=30))
def test_any_cut_gives_the_same_frames(lines: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    stream = b"".join(line + end for line, end in lines)
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    reader = SSEReader()
    found = [frame for a, b in itertools.pairwise(places) for frame in reader.push(stream[a:b])]
    left = reader.flush()
    assert found == read(stream)
    raw = b"".join(frame.raw for frame in found)
    assert stream.startswith(raw)
    # Only line ends and an unfinished frame may be left; the latter is finished, not changed.
    assert left is None or left.raw.startswith(stream[len(raw) :])
    assert left is not None or not stream[len(raw) :].strip()


@given(st.lists(st.binary(max_size=30).map(lambda data: data.translate(None, b"\r\n")), max_size=10), st.data())
def test_what_is_written_is_read_back(datas: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(write_frame(item, data.draw(st.sampled_from(["", "delta"]))) for item in datas)
    assert [frame.data for frame in read(stream)] == datas


# what is left when the upstream hangs up -> the last frame
UNFINISHED = [
    (b"", None),
    (b"\n", None),
    (b" \r\n", None),
    (b"data: a", Frame(b"data: a\n\n", b"a")),
    (b"data: a\n", Frame(b"data: a\n\n", b"a")),
    (b"data: a\r\n", Frame(b"data: a\r\n\n", b"a")),
    (b"data: a\ndata: b", Frame(b"data: a\ndata: b\n\n", b"a\nb")),
    (b"event: e\ndata: a", Frame(b"event: e\ndata: a\n\n", b"a", "e")),
]


@pytest.mark.parametrize(("rest", "frame"), UNFINISHED)
def test_an_unfinished_frame_is_finished_at_the_end(rest: bytes, frame: Frame | None) -> None:
    reader = SSEReader()
    assert read(b"data: z\n\n") == reader.push(b"data: z\n\n" + rest)
    assert reader.flush() == frame
    assert reader.flush() is None
    if frame is not None:
        assert read(frame.raw) == [frame]


def test_an_endless_frame_is_an_upstream_error() -> None:
    reader = SSEReader(limit=100)
    assert len(reader.push(b"data: a\n\n" * 50)) == 50  # many small frames are no large one
    reader.push(b"data: " + b"x" * 94)
    with pytest.raises(UpstreamError, match="size limit"):
        reader.push(b"x")


def test_a_frame_keeps_its_bytes() -> None:
    raw = b": note\r\nevent: e\rdata: 1\n\n"
    assert parse_frame(raw) == Frame(raw, b"1", "e")
