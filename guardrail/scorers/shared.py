"""One scorer for several processes: it runs in a process of its own, and they reach it over a Unix-domain socket.

`serve_scorer` is the process's side, `SharedScorer` the callers'. A caller who leaves says so, and what was not begun
for it never runs. If the process goes away, what is in flight fails, and so does what is asked until it is back; the
caller meanwhile tries again and again. A process that comes back with another fingerprint is not spoken to: what its
callers compiled against the old one (routes, the weights on a decision) would be wrong.

The socket is its owner's alone (0600); whoever may open it may have texts scored, and learns nothing of other callers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from guardrail.errors import ConfigError, Overloaded, ScorerError
from guardrail.scorers.frames import HEAD, PROTOCOL, FrameError, Head, Kind, read_body, read_head, write_frame
from guardrail.scoring import Passage, Score, Scorer, Vector

_log = logging.getLogger("guardrail.scorers.shared")

OPEN_TIMEOUT = 120.0
"""Seconds that a caller waits for the process at first; it may be loading its weights."""

MOST_REQUESTS, MOST_BYTES = 1024, 256 << 20
"""This much may be in flight on a connection."""

_HELLO_TIMEOUT = 10.0
_DRAIN, _DEAF = 10.0, 1.0  # seconds for what is in flight, and for its answers to be taken
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_LARGE = 1 << 18


@dataclass(frozen=True, slots=True)
class _Hello:
    protocol: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Failure:
    overloaded: bool
    message: str


async def _read_frame(reader: StreamReader) -> tuple[Head, bytes]:
    """Raises `IncompleteReadError` or another `EOFError` or `OSError` where the other side is gone."""
    head = read_head(await reader.readexactly(HEAD.size))
    return head, await reader.readexactly(head.size)


# The process


async def serve_scorer(path: Path, scorer: Scorer, stop: asyncio.Event) -> None:
    """Answers callers at `path` until `stop` is set, then those in flight, for some seconds. Does not close `scorer`.

    Raises `ConfigError` if it cannot listen there, or another process does.
    """
    callers: dict[_Caller, asyncio.Task[None]] = {}

    async def answer(reader: StreamReader, writer: StreamWriter) -> None:
        caller = _Caller(scorer, writer)
        running = callers[caller] = asyncio.create_task(caller.run(reader))
        running.add_done_callback(lambda _: callers.pop(caller))

    with _bound(path) as bound:
        server = await asyncio.start_unix_server(answer, sock=bound)
        try:
            _log.info("scoring", extra={"socket": str(path), "weights": scorer.fingerprint})
            await stop.wait()
        finally:
            server.close()
            left = dict(callers)
            await asyncio.gather(*(caller.end() for caller in left))
            if left:
                _, deaf = await asyncio.wait(left.values(), timeout=_DEAF)
                for running in deaf:
                    running.cancel()
                await asyncio.gather(*deaf, return_exceptions=True)


@contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.settimeout(1)
        if path.is_socket():
            probe.connect(str(path))
            raise ConfigError(f"{path}: another process listens there")
    bound = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket():
            path.unlink()  # of a process that is no more
        mask = os.umask(0o177)
        try:
            bound.bind(str(path))
        finally:
            os.umask(mask)
    except OSError as error:
        bound.close()
        raise ConfigError(f"{path}: cannot listen there ({error.strerror or error})") from None
    try:
        yield bound
    finally:
        bound.close()
        path.unlink(missing_ok=True)


class _Caller:
    """One connection, as the process sees it."""

    def __init__(self, scorer: Scorer, writer: StreamWriter) -> None:
        self._scorer = scorer
        self._writer = writer
        self._working: dict[int, asyncio.Task[None]] = {}
        self._bytes = 0  # of the requests that it works on
        self._ending = False

    async def run(self, reader: StreamReader) -> None:
        try:
            await self._send(Kind.HELLO, 0, _Hello(PROTOCOL, self._scorer.fingerprint))
            while True:
                self._take(*await _read_frame(reader))
        except FrameError as error:
            _log.warning("a caller was turned away", extra={"error": f"a frame {error}"})
        except (OSError, EOFError):
            pass  # it left
        finally:
            for task in self._working.values():
                task.cancel()
            self._writer.transport.abort()

    async def end(self) -> None:
        """Take no more, answer what is in flight, close."""
        self._ending = True
        if self._working:
            await asyncio.wait(self._working.values(), timeout=_DRAIN)
        self._writer.close()

    def _take(self, head: Head, body: bytes) -> None:
        if head.kind is Kind.CANCEL:
            if head.id in self._working:
                self._working[head.id].cancel()
            return
        if head.kind not in (Kind.SCORE, Kind.EMBED) or head.id in self._working:
            raise FrameError("is out of place")
        self._bytes += head.size
        task = self._working[head.id] = asyncio.create_task(self._answer(head, body))
        task.add_done_callback(lambda _: self._done(head))

    def _done(self, head: Head) -> None:
        del self._working[head.id]
        self._bytes -= head.size

    async def _answer(self, head: Head, body: bytes) -> None:
        try:
            if self._ending:
                raise ScorerError("the scorer was closed")
            if len(self._working) > MOST_REQUESTS or self._bytes > MOST_BYTES:
                raise Overloaded("too many requests are in flight")
            await self._send(Kind.RESULT, head.id, await self._result(head, body))
        except OSError:
            pass  # it left
        except Exception as error:
            # Messages of foreign errors may hold text of a caller: only the name of the type goes on.
            message = error.message if isinstance(error, ScorerError) else f"the scorer failed: {type(error).__name__}"
            with suppress(OSError):
                await self._send(Kind.ERROR, head.id, _Failure(isinstance(error, Overloaded), message))

    async def _result(self, head: Head, body: bytes) -> Sequence[Score] | Vector:
        if head.kind is Kind.EMBED:
            return await self._scorer.embed(await _read(head, body, Sequence[str]))
        return await self._scorer.score(await _read(head, body, Sequence[Passage]))

    async def _send(self, kind: Kind, number: int, value: Any) -> None:
        self._writer.write(write_frame(kind, number, value))
        await self._writer.drain()


async def _read(head: Head, body: bytes, kind: Any) -> Any:
    """Large bodies are read beside the loop."""
    if len(body) > _LARGE:
        return await asyncio.to_thread(read_body, head, body, kind)
    return read_body(head, body, kind)


# Its callers


class SharedScorer:
    """A `guardrail.scoring.Scorer` that another process is. Make it with `open`; `close` it when done.

    Its connection lives in a thread with a loop of its own, so it may be used from any loop, and large texts are
    written and read beside the callers' loops.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: Future[str] = Future()  # the fingerprint
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[tuple[Head, bytes]]] = {}
        self._writer: StreamWriter | None = None
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="shared-scorer", daemon=True)
        self._thread.start()

    @classmethod
    async def open(cls, path: Path, *, within: float = OPEN_TIMEOUT) -> SharedScorer:
        """Waits for the process at `path`, `within` seconds. Raises `ScorerError` if it does not answer, `ConfigError`
        if it speaks another protocol.
        """
        scorer = cls(path)
        try:
            async with asyncio.timeout(within):
                opened = asyncio.wrap_future(scorer._opened)
                opened.add_done_callback(lambda done: done.exception())  # whoever still waits for it then
                await asyncio.shield(opened)
        except BaseException as error:
            scorer.close()
            if isinstance(error, TimeoutError):
                raise ScorerError(f"no scorer process answers at {path}") from None
            raise
        return scorer

    @property
    def fingerprint(self) -> str:
        return self._opened.result()

    async def score(self, passages: Sequence[Passage]) -> list[Score]:
        return list(await self._ask(Kind.SCORE, passages, Sequence[Score])) if passages else []

    async def embed(self, texts: Sequence[str]) -> Vector:
        vectors: Vector = await self._ask(Kind.EMBED, texts, Vector)
        return vectors

    def close(self) -> None:
        """Fail who waits, end the thread. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _ask(self, kind: Kind, value: Any, answer: Any) -> Any:
        if self._closed:
            raise ScorerError("the scorer was closed")
        return await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(self._exchange(kind, value, answer), self._loop)
        )

    # In the thread

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        keeping = asyncio.create_task(self._keep())
        await self._stop.wait()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        # Who asks is told, before the loop's end cancels the rest: a cancelled task would cancel its caller.
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
        if not self._opened.done():
            self._opened.set_exception(ScorerError("the scorer was closed"))

    async def _exchange(self, kind: Kind, value: Any, answer: Any) -> Any:
        writer = self._writer
        if writer is None:
            raise ScorerError("the scorer process cannot be reached")
        number = next(self._numbers)
        try:
            frame = write_frame(kind, number, value)
        except FrameError as error:
            raise ScorerError(f"what is to be scored {error}") from None
        reply = self._waiting[number] = self._loop.create_future()
        try:
            writer.write(frame)
            await writer.drain()
            head, body = await reply
            if head.kind is Kind.ERROR:
                failure: _Failure = read_body(head, body, _Failure)
                raise (Overloaded if failure.overloaded else ScorerError)(failure.message)
            return read_body(head, body, answer)
        except FrameError as error:
            raise ScorerError(f"the scorer process's answer {error}") from None
        except OSError:
            raise ScorerError("the scorer process went away") from None
        except asyncio.CancelledError:
            if not writer.is_closing():
                writer.write(write_frame(Kind.CANCEL, number))
            raise
        finally:
            del self._waiting[number]
            if reply.done() and not reply.cancelled():
                reply.exception()  # it may have failed after this did

    async def _keep(self) -> None:
        """Connected, as far as it can be."""
        pause = _FIRST_PAUSE
        told = ""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path)
            except OSError as error:
                problem = error.strerror or type(error).__name__
            else:
                try:
                    await self._greet(reader)
                    self._writer, pause, told = writer, _FIRST_PAUSE, ""
                    await self._listen(reader)
                except (OSError, EOFError):
                    problem = "the connection ended"
                except (FrameError, ScorerError) as error:
                    problem = str(error)
                finally:
                    self._writer = None
                    writer.transport.abort()
                    self._fail()
            if problem != told and self._opened.done():
                told = problem
                _log.error("the scorer process cannot be reached", extra={"error": problem})
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _greet(self, reader: StreamReader) -> None:
        async with asyncio.timeout(_HELLO_TIMEOUT):
            head, body = await _read_frame(reader)
        if head.kind is not Kind.HELLO:
            raise FrameError("is out of place")
        hello: _Hello = read_body(head, body, _Hello)
        if hello.protocol != PROTOCOL:
            error = ConfigError(f"the scorer process at {self._path} is of another version of guardrail")
            if not self._opened.done():
                self._opened.set_exception(error)
            raise FrameError("is of another version of guardrail")
        if not self._opened.done():
            self._opened.set_result(hello.fingerprint)
        elif hello.fingerprint != self._opened.result():
            raise ScorerError("it has other weights than it had: start this process again")

    async def _listen(self, reader: StreamReader) -> None:
        while True:
            head, body = await _read_frame(reader)
            if head.kind not in (Kind.RESULT, Kind.ERROR):
                raise FrameError("is out of place")
            reply = self._waiting.get(head.id)
            if reply is not None and not reply.done():  # else its caller left
                reply.set_result((head, body))

    def _fail(self) -> None:
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(ConnectionResetError())
