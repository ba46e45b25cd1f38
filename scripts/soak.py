"""The properties of tests/test_stream_properties.py on as many cut streams as there is time for.

Every stream is drawn from a seed of its own, so a run can go on where another ended (`--first`), and a failure can be
seen again (`--first SEED --streams 1`). What was done so far is told as it goes; an interrupted run has lost nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import time
import traceback
from collections.abc import AsyncIterator
from random import Random

from tests.cuts import Driver, prove

BLOCK = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    last = arguments.first + arguments.streams
    blocks = [(at, min(at + BLOCK, last)) for at in range(arguments.first, last, BLOCK)]
    streams, failures, told = 0, 0, time.monotonic()
    with multiprocessing.Pool(arguments.processes) as pool:
        for (_, upto), failed in zip(blocks, pool.imap(run_block, blocks), strict=True):
            streams = upto - arguments.first
            failures += len(failed)
            for report in failed:
                print(report, flush=True)
            if time.monotonic() > told + 30 or upto == last or time.monotonic() > end:
                told = time.monotonic()
                print(f"{streams:,} streams, {failures} failures; go on with --first {upto}", flush=True)
            if time.monotonic() > end:
                break
    raise SystemExit(bool(failures))


def run_block(seeds: tuple[int, int]) -> list[str]:
    return asyncio.run(_run_block(*seeds))


async def _run_block(first: int, upto: int) -> list[str]:
    return [report async for report in _failures(first, upto)]


async def _failures(first: int, upto: int) -> AsyncIterator[str]:
    driver = Driver.make()
    for seed in range(first, upto):
        try:
            await prove(driver, Random(seed))  # noqa: S311 - to be drawn again
        except Exception:
            yield f"seed {seed}: {traceback.format_exc()}"


if __name__ == "__main__":
    main()
