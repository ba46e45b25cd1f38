"""`SmolUpstream`: SmolLM2-135M-Instruct behind the upstream protocol. A demo: small, real, and often wrong.

One worker thread owns the model, so one answer is written at a time; a bounded number of callers waits, the rest get
503 with retry-after. A `_Run` is one answer under way: the worker's pieces come to the event loop through its queue. A
place is taken in `send` and given back when the worker is through, also for a caller who left: closing the stream
stops the work at the next token.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from guardrail.errors import BadRequest, ConfigError, GuardrailError, NotFound, UpstreamError
from guardrail.upstream import UpstreamResponse
from guardrail_embedded import chat
from guardrail_embedded.chat import ChatRequest, Form
from guardrail_embedded.model import CONTEXT, Model, Piece, Sampling, use_one_thread
from guardrail_embedded.weights import LoadFailed, Progress, prepare

MODEL = "smollm2-135m-instruct (demo)"
_RETRY_AFTER = 5
_log = logging.getLogger(__name__)


class Busy(UpstreamError):
    """As many callers wait as may."""

    status = 503
    code = "server_busy"


class SmolUpstream:
    """`waiting`: how many callers may wait while one is served."""

    def __init__(self, *, waiting: int = 8) -> None:
        self._places = waiting + 1
        self._taken = 0
        self._closed = threading.Event()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="smollm")
        self._loading: asyncio.Task[Model] | None = None

    async def load(self, progress: Progress | None = None) -> None:
        """Does now what the first request would. `progress` is called in this loop; raises LoadFailed, ConfigError."""
        await self._load(progress or _silent)

    async def send(self, path: str, body: bytes, headers: Mapping[str, str]) -> UpstreamResponse:
        if (listing := chat.models(path, MODEL, "HuggingFaceTB")) is not None:
            return listing
        try:
            if path != "/v1/chat/completions":
                raise NotFound(f"the embedded upstream has no {path}")
            request = chat.read(body)
            if self._taken >= self._places:
                raise Busy("the demo model is busy; try again shortly")
            return chat.streamed(await self._begin(request), sse=request.stream)
        except Busy as error:
            return chat.problem(error, retry_after=_RETRY_AFTER)
        except (LoadFailed, ConfigError) as error:
            # The message names folders: for the operator, not for the caller.
            _log.error("%s", error.message)
            return chat.problem(LoadFailed("the demo model could not be loaded"))
        except GuardrailError as error:
            return chat.problem(error)

    async def aclose(self) -> None:
        """Answers under way break off with UpstreamError."""
        self._closed.set()
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _begin(self, request: ChatRequest) -> AsyncGenerator[bytes, None]:
        self._taken += 1
        try:
            model = await self._load(_silent)
            prompt = await asyncio.to_thread(model.render, request.turns)
            run = _Run(model, prompt, _sampling(request, len(prompt)), self._closed.is_set)
            future = self._worker.submit(run.work)
        except BaseException:
            self._taken -= 1
            raise
        run.follow(future, self._give_back)
        stream = run.read(chat.form(request, MODEL, len(prompt)))
        # To its first, empty yield: closing a generator that never began would not run its `finally`.
        await anext(stream)
        return stream

    def _give_back(self) -> None:
        self._taken -= 1

    async def _load(self, progress: Progress) -> Model:
        if self._closed.is_set():
            raise UpstreamError("the embedded upstream is closed")
        task = self._loading
        # A load that failed is tried again: a disk that was full may have room now.
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._loading = asyncio.create_task(self._load_once(progress))
        return await asyncio.shield(task)  # one caller leaving does not stop the load for the others

    async def _load_once(self, progress: Progress) -> Model:
        loop = asyncio.get_running_loop()

        def tell(what: str, share: float) -> None:
            _tell(loop, progress, what, share)

        def work() -> Model:
            folder = prepare(tell, self._closed.is_set)
            tell("loading SmolLM2", 0.0)
            try:
                use_one_thread()
                model = Model(folder)
            except Exception as error:
                raise LoadFailed(f"SmolLM2 in {folder} cannot be read; remove that folder and try again") from error
            tell("loading SmolLM2", 1.0)
            return model

        return await loop.run_in_executor(self._worker, work)


class _Run:
    """One answer under way, from the worker's side (`work`) and the reader's (`read`)."""

    def __init__(self, model: Model, prompt: list[int], sampling: Sampling, closed: Callable[[], bool]) -> None:
        self._model = model
        self._prompt = prompt
        self._sampling = sampling
        self._closed = closed
        self._left = threading.Event()
        self._loop = asyncio.get_running_loop()
        # Bounded by n x max_tokens pieces, then None or what went wrong.
        self._queue: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
        self._future: Future[None] | None = None

    def work(self) -> None:
        for piece in self._model.generate(self._prompt, self._sampling, self._stopped):
            _tell(self._loop, self._queue.put_nowait, piece)

    def follow(self, future: Future[None], then: Callable[[], None]) -> None:
        def ended(future: Future[None]) -> None:
            error = None if future.cancelled() else future.exception()
            _tell(self._loop, self._queue.put_nowait, error)
            _tell(self._loop, then)

        self._future = future
        future.add_done_callback(ended)

    async def read(self, form: Form) -> AsyncGenerator[bytes, None]:
        unfinished = self._sampling.n
        try:
            yield b""
            if start := form.start():
                yield start
            while isinstance(piece := await self._queue.get(), Piece):
                unfinished -= piece.finish is not None
                if data := form.push(piece.index, piece.text, piece.finish, piece.tokens):
                    yield data
            if piece is not None:
                raise UpstreamError("the demo model failed") from piece
            if unfinished:
                raise UpstreamError("the demo model was closed in the middle of an answer")
            yield form.end()
        finally:
            self._left.set()
            if self._future is not None:
                self._future.cancel()

    def _stopped(self) -> bool:
        return self._left.is_set() or self._closed()


def _sampling(request: ChatRequest, prompt: int) -> Sampling:
    """The caller's wishes; what was left to us stays at our defaults (low temperature: the model is tiny)."""
    room = CONTEXT - prompt
    if room < 1:
        message = f"this model's context is {CONTEXT} tokens; the messages have {prompt}"
        raise BadRequest(message, param="messages", code="context_length_exceeded")
    ours = Sampling()
    return Sampling(
        n=request.n,
        max_tokens=min(request.max_tokens or ours.max_tokens, room),
        temperature=ours.temperature if request.temperature is None else request.temperature,
        top_p=ours.top_p if request.top_p is None else request.top_p,
        stop=request.stop,
        seed=request.seed,
    )


def _silent(what: str, share: float) -> None:
    pass


def _tell(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *args: object) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
        loop.call_soon_threadsafe(call, *args)
