"""DBOS in a process of its own: asked on standard input for windows, `IN_FLIGHT SECONDS` a line, it answers with one JSON line each.

Its workflows are awaited directly, without a queue: its fastest form.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from dbos import DBOS

FILLER = "x" * 70
steps_made = 0
over = False


@DBOS.step()
async def note(i: int) -> dict[str, object]:
    global steps_made
    steps_made += 1
    return {"i": i, "ok": True, "data": FILLER}


@DBOS.workflow()
async def sequence(steps: int) -> int:
    for i in range(steps):
        if over:
            break
        await note(i)
    return steps


async def window(in_flight: int, seconds: float) -> dict[str, object]:
    global over, steps_made
    over, steps_made = False, 0

    async def lane(index: int) -> None:
        steps = index % 10 + 1
        while not over:
            await sequence(steps)
            steps = 10

    lanes = [asyncio.create_task(lane(index)) for index in range(in_flight)]
    patience = time.perf_counter() + 10
    while steps_made < in_flight and time.perf_counter() < patience:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    begun, count, used = time.perf_counter(), steps_made, time.process_time()
    await asyncio.sleep(seconds)
    wall, made, cpu = time.perf_counter() - begun, max(1, steps_made - count), time.process_time() - used
    over = True
    await asyncio.gather(*lanes)
    return {"what": "dbos", "in_flight": in_flight, "steps_per_s": made / wall, "client_us": cpu / made * 1e6}


async def main() -> None:
    DBOS(
        config={
            "name": "bench",
            "system_database_url": sys.argv[1],
            "application_version": "1",
            "executor_id": str(os.getpid()),
            "log_level": "ERROR",
        }
    )
    DBOS.launch()
    await sequence(1)
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        in_flight, seconds = line.split()
        print(json.dumps(await window(int(in_flight), float(seconds))), flush=True)
    os._exit(0)


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())
