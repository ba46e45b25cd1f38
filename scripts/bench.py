"""Requests a second, added p50 and CPU of the proxy on one core, scoring off and on, beside a bare relay.

The mock upstream and the load generator share the first core, the server under test has the second to itself; all are
measured in turn, several rounds in one run, and medians are told. The relay is Starlette over the same transport and
does nothing but pass bytes on: the proxy cannot be faster than that.

`scripts/bench streams` measures streams instead, beside LiteLLM's proxy where there is one, and `scripts/bench windows`
what is scored of a stream and what leaves of one that is flagged (--help of each tells more).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

MOCK, RELAY, GUARD = 18101, 18102, 18103
ANSWER = ("A relay passes on what it is given. " * 35)[:1250]
BODY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "mock",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 250, "total_tokens": 262},
    }
).encode()
REQUEST = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "What does a relay do?"}]}).encode()


async def mock(port: int) -> None:
    reply = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                if length:
                    await reader.readexactly(int(length[0].split(b":")[1]))
                writer.write(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", port) as server:
        await server.serve_forever()


def relay(port: int) -> None:
    """The bare relay: the same server, the same transport, and nothing in between."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from guardrail.upstream import HTTPUpstream

    upstream = HTTPUpstream(f"http://127.0.0.1:{MOCK}")

    async def forward(request: Request) -> Response:
        answer = await upstream.send(request.url.path, await request.body(), {"content-type": "application/json"})
        body = b"".join([chunk async for chunk in answer.stream])
        await answer.stream.aclose()
        return Response(body, answer.status, media_type=answer.headers["content-type"])

    app = Starlette(routes=[Route("/v1/chat/completions", forward, methods=["POST"])])
    uvicorn.run(app, port=port, log_config=None, access_log=False)


@contextmanager
def running(command: list[str], port: int, core: int, path: str, environ: dict[str, str] | None = None):
    process = subprocess.Popen(
        ["taskset", "-c", str(core), *command],
        env={**os.environ, **(environ or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        asyncio.run(_wait(process, port, path))
        yield process
    finally:
        process.terminate()
        process.wait()


async def _wait(process: subprocess.Popen[bytes], port: int, path: str) -> None:
    for _ in range(3000):
        if process.poll() is not None:
            break
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            status = await asyncio.wait_for(reader.readline(), 5)
            writer.close()
            if b" 503 " not in status:
                return
        except OSError:
            pass
        await asyncio.sleep(0.1)
    raise SystemExit(f"nothing answers on port {port}")


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def load(port: int, callers: int, seconds: float) -> list[float]:
    """The time of each request, in seconds."""
    head = ["POST /v1/chat/completions HTTP/1.1", "host: x", "content-type: application/json"]
    head += [f"content-length: {len(REQUEST)}", "", ""]
    request = "\r\n".join(head).encode() + REQUEST
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def call() -> None:
        async with connection(port) as (reader, writer):
            while time.perf_counter() < end:
                begun = time.perf_counter()
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                assert b" 200 " in head.split(b"\r\n", 1)[0], head
                length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
                body = await reader.readexactly(int(length.split(b":")[1]))
                assert body == BODY
                times.append(time.perf_counter() - begun)

    await asyncio.gather(*(call() for _ in range(callers)))
    return times


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(process: subprocess.Popen[bytes]) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--callers", type=int, default=16)
    parser.set_defaults(work=lambda given: measure(given.rounds, given.seconds, given.callers))
    roles = parser.add_subparsers()
    roles.add_parser("mock").set_defaults(work=lambda _: asyncio.run(mock(MOCK)))
    roles.add_parser("relay").set_defaults(work=lambda _: relay(RELAY))
    for name in ("streams", "windows"):
        room = importlib.import_module(f"bench_{name}")
        one = roles.add_parser(name, description=room.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        room.add_arguments(one)
        one.set_defaults(work=room.measure)
    arguments = parser.parse_args()
    arguments.work(arguments)


def measure(rounds: int, seconds: float, callers: int) -> None:
    os.sched_setaffinity(0, {0})
    me = [sys.executable, __file__]
    serve = [sys.executable, "-m", "guardrail", "serve", "--upstream", f"http://127.0.0.1:{MOCK}", "--port"]
    off = {"GUARDRAIL_SAFEGUARD": "off"}
    results: dict[str, list[tuple[float, float, float, float]]] = {}
    with (
        running([*me, "mock"], MOCK, 0, "/"),
        running([*me, "relay"], RELAY, 1, "/"),
        running([*serve, str(GUARD)], GUARD, 1, "/readyz", off) as guard_off,
        running([*serve, str(GUARD + 1)], GUARD + 1, 1, "/readyz", {"GUARDRAIL_THREADS": "1"}) as guard_on,
    ):
        relay_process = None
        servers = {"mock, no proxy": (MOCK, None), "bare relay": (RELAY, relay_process)}
        servers |= {"guardrail, safeguard off": (GUARD, guard_off), "guardrail, safeguard on": (GUARD + 1, guard_on)}
        for round_ in range(rounds + 1):  # the first is to warm up
            for name, (port, process) in servers.items():
                one = statistics.median(asyncio.run(load(port, 1, seconds / 2)))
                before = cpu_seconds(process) if process else 0.0
                times = asyncio.run(load(port, callers, seconds))
                used = cpu_seconds(process) - before if process else 0.0
                if round_:
                    results.setdefault(name, []).append(
                        (
                            len(times) / seconds,
                            one * 1000,
                            used * 1000 / len(times),
                            resident_mib(process) if process else 0,
                        )
                    )
    report(results)


def report(results: dict[str, list[tuple[float, float, float, float]]]) -> None:
    rows = {
        name: [statistics.median(column) for column in zip(*values, strict=True)] for name, values in results.items()
    }
    relay_rate, base = rows["bare relay"][0], rows["mock, no proxy"][1]
    print("| server, one core | requests/s | of the relay | p50 ms, one caller | added | CPU ms a request | MiB |")
    print("|---|---|---|---|---|---|---|")
    for name, (rate, p50, cpu, memory) in rows.items():
        numbers = (f"{rate:.0f}", f"{rate / relay_rate:.0%}", f"{p50:.2f}", f"{p50 - base:.2f}")
        print("|", " | ".join([name, *numbers, f"{cpu:.2f}" if cpu else "-", f"{memory:.0f}" if memory else "-"]), "|")


if __name__ == "__main__":
    main()
