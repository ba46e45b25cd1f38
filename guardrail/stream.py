"""A guarded stream: the path of `guardrail.guard` at the tempo of an upstream that is still speaking.

Events go into a `Holdback`, due windows to the scorer, released events to the client. A window over its band ends the
upstream's part in that choice: what was released stays, a bridge and the replacement follow in the same stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from guardrail.conversation import PartKind, StreamEvent, Usage
from guardrail.decision import Finding, Judgement, waived
from guardrail.errors import GuardrailError, UpstreamError
from guardrail.policy import Mode
from guardrail.rewriting import bridge
from guardrail.scoring import Verdict
from guardrail.stations import Exchange, Stations, check_choices
from guardrail.streaming import Cleared, Holdback, Schedule, Window
from guardrail.upstream import UpstreamResponse
from guardrail.wire.sse import Frame, SSEReader

EVENT_STREAM = "text/event-stream"


class GuardedStream:
    def __init__(
        self,
        stations: Stations,
        exchange: Exchange,
        answer: UpstreamResponse,
    ) -> None:
        self._stations = stations
        self._exchange = exchange
        self._case = exchange.case
        self._request = exchange.request
        self._wire = exchange.open_stream()
        self._answer = answer
        policy = stations.compiled.policy
        self._waived = waived(policy)
        self._hold = Holdback(self._wire.strip, Schedule(tail=policy.streaming.tail, held=stations.limits.held_bytes))
        self._begun: set[int] = set()
        self._cleared: set[int] = set()
        self._finished: set[int] = set()
        self._worst: dict[int, float] = {}
        self._done = False

    async def run(self) -> AsyncGenerator[bytes, None]:
        """The bytes for the client. However it ends, the upstream is closed and the request recorded."""
        try:
            async with aclosing(self._guarded()) as guarded:
                async for chunk in guarded:
                    yield chunk
            await self._case.settle()
            await self._finish("completed")
        except GuardrailError as error:
            await self._finish("failed")
            yield self._wire.fail(error)
        except Exception:
            # A bug of ours: the client is told that this is no end, and it goes on to where bugs are logged.
            await self._finish("failed")
            failed = GuardrailError("the guard failed; the answer was cut short", code="internal_error")
            yield self._wire.fail(failed)
            raise
        finally:
            await self.aclose()

    @property
    def held_bytes(self) -> int:
        return self._hold.held_bytes

    async def aclose(self) -> None:
        await self._finish("client_left")

    async def _finish(self, outcome: str) -> None:
        passed = range(self._request.choices) if outcome == "completed" else self._cleared
        for index in passed:
            if index not in self._hold.gone and index not in self._hold.unreasoned:
                self._case.passes(Judgement(index, Mode.DIRECT, None, self._worst.get(index)))
        self._case.close(outcome, 200)
        await self._answer.stream.aclose()

    async def _guarded(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._frames()) as frames:
            async for frame in frames:
                event = self._wire.read(frame)
                for out in await self._take(event):
                    yield out
                if event.done or self._is_decided():
                    break
        if not self._done and self._is_decided():
            yield self._wire.end(self._case.note(), (self._case.usage or Usage()) + self._case.spent)
        elif not self._done:
            for out in await self._end():
                yield out
            if not self._begun or self._begun - self._finished - self._hold.gone:
                raise UpstreamError("the upstream's stream ended before its answer did")
            if self._hold.gone:
                yield self._wire.end(self._case.note())  # the end of what we put in its place

    async def _frames(self) -> AsyncGenerator[Frame, None]:
        reader = SSEReader()
        received = 0
        async for chunk in self._answer.stream:
            received += len(chunk)
            if received > self._stations.limits.response_bytes:
                raise UpstreamError("the upstream's answer is over the size limit")
            for frame in reader.push(chunk):
                yield frame
        if last := reader.flush():
            yield last

    async def _take(self, event: StreamEvent) -> list[bytes]:
        """What may go to the client now that this event has come."""
        check_choices(self._request, event.choices)
        self._begun.update(event.choices)
        self._finished.update(event.finished)
        if event.done:
            self._done = True
            return [*await self._end(), self._wire.write(event)]
        if event.usage is not None:
            self._case.usage = event.usage
        self._hold.push(event)
        out = []
        media = [piece for piece in event.pieces if piece.kind is PartKind.UNSCANNABLE]
        for index in {piece.choice for piece in media} - self._hold.gone:
            found = self._stations.unscannable(self._case, media[0].key)
            if found.mode is not Mode.DIRECT:
                out.append(await self._intervene(index, [found]))
        out += await self._settle()
        if self._hold.overfull:
            full = Finding(PartKind.UNKNOWN, "", Mode.REFUSE, None, None, verdict=Verdict.ERROR)
            self._case.meets(full)
            for index in self._hold.open:
                out.append(await self._intervene(index, [full]))
            out += self._write(self._hold.release())
        return out

    async def _end(self) -> list[bytes]:
        self._hold.close()
        return await self._settle()

    async def _settle(self) -> list[bytes]:
        """Scores what is due and gives what was cleared, the replacements of what was not after it."""
        out = self._write(self._hold.release())
        while windows := self._hold.due():
            findings = await self._find(windows)
            flagged: dict[int, list[Finding]] = {}
            cleared: list[Cleared] = []
            for window, finding in zip(windows, findings, strict=True):
                index, kind, _ = window.lane
                if finding.mode is Mode.DIRECT:
                    cleared.append(Cleared(window, finding, self._waived))
                    self._cleared.add(index)
                elif kind is PartKind.REASONING:
                    self._hold.drop_reasoning(index)
                    self._case.passes(Judgement(index, Mode.DIRECT, None, None, (finding,), drop_reasoning=True))
                else:
                    flagged.setdefault(index, []).append(finding)
            replacements = [await self._intervene(index, found) for index, found in flagged.items()]
            out += self._write(self._hold.release(cleared))
            out += replacements
        return out

    async def _find(self, windows: tuple[Window, ...]) -> list[Finding]:
        passages = [self._stations.passage(self._request, w.lane[1], w.text, w.start) for w in windows]
        findings = await self._stations.find(self._case, [window.lane[1:] for window in windows], passages)
        for window, finding in zip(windows, findings, strict=True):
            index = window.lane[0]
            if finding.value is not None:
                self._worst[index] = max(self._worst.get(index, 0.0), finding.value)
        return findings

    async def _intervene(self, index: int, findings: list[Finding]) -> bytes:
        """Ends the upstream's part in a choice; gives the rest of it for the client."""
        worst = max(findings, key=lambda found: (found.mode.strictness, found.value or 0.0))
        judgement = Judgement(index, worst.mode, worst.rule, worst.value, tuple(findings))
        text = self._hold.text(index)
        shown = self._hold.drop(index)
        replacement = await self._stations.replace(self._exchange, judgement, text, shown)
        prefix = "" if replacement.as_refusal else bridge(shown)
        return self._wire.replace(index, replacement, self._case.note(), prefix)

    def _write(self, events: list[StreamEvent]) -> list[bytes]:
        out = []
        for event in events:
            noted = self._hold.unreasoned.intersection(event.finished)
            spent = event.usage is not None and self._case.spent != Usage()
            usage = event.usage + self._case.spent if event.usage is not None and spent else None
            out.append(self._wire.write(event, self._case.note() if noted else None, usage))
        return out

    def _is_decided(self) -> bool:
        """Whether nothing more is wanted from the upstream: each choice was given up or has finished, and at least
        one that was given up is still being generated.
        """
        gone = self._hold.gone
        everyone = set(range(self._request.choices))
        return everyone <= (gone | self._finished) and bool(gone - self._finished)


class RelayedStream:
    """A stream that nobody judges, passed on as it comes."""

    def __init__(self, exchange: Exchange, answer: UpstreamResponse) -> None:
        self._exchange = exchange
        self._case = exchange.case
        self._answer = answer

    async def run(self) -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in self._answer.stream:
                yield chunk
            self._case.close("completed", 200)
        except GuardrailError as error:
            self._case.close("failed", 200)
            yield self._exchange.open_stream().fail(error)
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        self._case.close("client_left", 200)
        await self._answer.stream.aclose()
