"""Restate, a single node with its durable defaults: service and client share this process, the server is one of its own."""

from __future__ import annotations

import asyncio
import os
import tempfile
from importlib.metadata import version
from typing import Any

import aiohttp
import restate
from hypercorn.asyncio import serve
from hypercorn.config import Config

from tests.bench.measured import Beside, Figures, Sample, lanes
from tests.bench.peers import program
from tests.bench.servers import free_port
from tests.bench.subject import FILLER

steps_made = 0
service = restate.Service("Bench")


async def note(i: int) -> dict[str, Any]:
    global steps_made
    steps_made += 1
    return {"i": i, "ok": True, "data": FILLER}


@service.handler()
async def sequence(ctx: restate.Context, steps: int) -> int:
    for i in range(steps):
        await ctx.run_typed("note", note, i=i)
    return steps


@service.handler()
async def wide(ctx: restate.Context, count: int) -> int:
    await restate.gather(*[ctx.run_typed("note", note, i=i) for i in range(count)])
    return count


@service.handler()
async def child(ctx: restate.Context, number: int) -> int:
    await ctx.run_typed("note", note, i=number)
    return number


@service.handler()
async def parent(ctx: restate.Context, count: int) -> int:
    await restate.gather(*[ctx.service_call(child, arg=number) for number in range(count)])
    return count


class Restate:
    def __init__(self, _: str) -> None:
        self._session: Any = None
        self._server: Any = None
        self._ingress = ""

    async def begin(self) -> str:
        ingress, admin, node, own = (free_port() for _ in range(4))
        self._ingress = f"http://127.0.0.1:{ingress}"
        variables = {
            "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ingress}", "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{admin}",
            "RESTATE_BIND_ADDRESS": f"127.0.0.1:{node}", "RESTATE_ADVERTISED_ADDRESS": f"http://127.0.0.1:{node}",
            "RESTATE_BASE_DIR": tempfile.mkdtemp(prefix="flowdsl-bench-"), "RESTATE_DISABLE_TELEMETRY": "true", "RESTATE_LOG_FILTER": "error",
            "RESTATE_NODE_NAME": "bench", "RESTATE_LISTEN_MODE": "tcp",
        }  # fmt: skip
        self._server = await asyncio.create_subprocess_exec(
            program("restate-server") or "restate-server",
            env={**os.environ, **variables},
            stdout=asyncio.subprocess.DEVNULL,
            stdin=asyncio.subprocess.DEVNULL,
        )
        config = Config()
        config.bind, config.errorlog, config.accesslog, config.h2_max_concurrent_streams = [f"127.0.0.1:{own}"], None, None, 20_000
        self._serving = asyncio.create_task(serve(restate.app([service]), config, shutdown_trigger=asyncio.Event().wait))  # type: ignore[arg-type]
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(None))
        for _ in range(300):
            try:
                await self._post(f"http://127.0.0.1:{admin}/deployments", {"uri": f"http://127.0.0.1:{own}", "force": True})
                break
            except (aiohttp.ClientError, RuntimeError):
                if self._server.returncode is not None:
                    raise RuntimeError(f"`restate-server` ended with {self._server.returncode}") from None
                await asyncio.sleep(0.1)
        return f"{await self._version()}, SDK {version('restate-sdk')}"

    async def _version(self) -> str:
        asked = await asyncio.create_subprocess_exec(program("restate-server") or "restate-server", "--version", stdout=asyncio.subprocess.PIPE)
        told, _ = await asked.communicate()
        return told.decode().split()[-1]

    async def _post(self, address: str, body: Any) -> Any:
        async with self._session.post(address, json=body) as response:
            if response.status >= 300:
                raise RuntimeError(f"{address}: {response.status} {await response.text()}")
            return await response.json() if response.content_type == "application/json" else None

    async def _run(self, what: str, size: int) -> None:
        await self._post(f"{self._ingress}/Bench/{what}", size)

    async def seq(self, in_flight: int, seconds: float) -> Figures:
        before = steps_made
        span = Beside(self._server.pid, lambda: steps_made)

        async def one(steps: int) -> None:
            await self._run("sequence", steps)

        sample: Sample = await lanes(in_flight, one, span.window("restate", in_flight, seconds, above=before))
        return sample.figures(seconds, total=steps_made - before)

    async def fanout(self, count: int, _: float) -> Figures:
        await self._run("wide", 10)
        return await Beside(self._server.pid, int).over(count, self._run("wide", count))

    async def children(self, count: int, _: float) -> Figures:
        await self._run("parent", 10)
        return await Beside(self._server.pid, int).over(count, self._run("parent", count))

    async def cold(self, steps: int, _: float) -> Figures:
        """With the start of its server, which is a part of the process here."""
        await self._run("sequence", steps)
        return Figures(steps, 0.0)

    async def end(self) -> None:
        await self._session.close()
        self._server.kill()
        await self._server.wait()
