"""The nemesis: what it does to processes, server and wires, when, and whether it really hit."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from attrs import define, field

from flowdsl.testing.chaos.crew import Crew
from flowdsl.testing.chaos.orders import RELEASES
from flowdsl.testing.chaos.processes import Child, Links
from flowdsl.testing.chaos.server import Postgres
from flowdsl.testing.chaos.system import RELEASE

DECK: dict[str, int] = {
    "kill worker": 4, "freeze worker": 2, "stop worker": 1, "kill backends": 3, "immediate stop": 1, "kill postmaster": 1, "cut": 3,
    "swallow": 3, "late commit": 2, "slow": 2, "kill front": 1,
    "kill service": 2, "rolling deploy": 1,
}  # fmt: skip
"""One deal: how often each is played before all are shuffled again."""
CLAIMS = 8
"""Claims of what a new release started, before the last workers of the one before it are told to stop: each might have been theirs."""
PATIENCE = 30.0
"""Seconds that a deploy waits for them: it may fall into an outage."""


@define
class Tally:
    """How often a fault was tried, how often it met work under way, and what it met."""

    tried: int = 0
    hit: int = 0
    met: int = 0
    """Executions, statements or calls that were under way."""


@define
class Targets:
    postgres: Postgres
    crew: Crew
    links: Links
    front: Callable[[], Child | None]
    """The front, while there is one."""
    service: Callable[[], Child | None]
    """The service, while there is one."""
    calls: Callable[[], int]
    """How many calls of it wait for an answer."""


@define
class Nemesis:
    """Plays a seeded deck. `log`: what was done when, for whoever reads the evidence."""

    targets: Targets
    chance: random.Random
    lease: float
    deck: Mapping[str, int] = field(factory=lambda: DECK)
    tallies: dict[str, Tally] = field(init=False)
    log: list[str] = field(factory=list[str])
    current: str = ""
    _spared: Child | None = None
    """A worker of the old release while there are new ones: nobody kills it."""
    _deploy: asyncio.Task[None] | None = None
    _lasting: set[asyncio.Task[None]] = field(factory=set[asyncio.Task[None]])

    def __attrs_post_init__(self) -> None:
        self.tallies = {kind: Tally() for kind in self.deck}

    def deal(self) -> list[str]:
        cards = [kind for kind, count in self.deck.items() for _ in range(count)]
        self.chance.shuffle(cards)
        return cards

    async def rage(self, pause: float, enough: Callable[[], bool]) -> None:
        """Plays cards, `pause` seconds apart on average, until that is enough."""
        cards: list[str] = []
        while not enough():
            cards = cards or self.deal()
            await self.play(cards.pop())
            await asyncio.sleep(min(2.0, max(0.1, pause * self.chance.uniform(0.4, 1.6))))

    async def play(self, kind: str) -> None:
        self.current = kind
        before = time.time()
        acts: dict[str, Callable[[], Awaitable[int | None]]] = {
            "kill worker": self._kill_worker, "freeze worker": self._freeze_worker, "stop worker": self._stop_worker,
            "kill backends": self._kill_backends, "immediate stop": self._immediate_stop, "kill postmaster": self._kill_postmaster,
            "cut": self._cut, "swallow": self._swallow, "late commit": self._late_commit, "slow": self._slow, "kill front": self._kill_front,
            "kill service": self._kill_service, "rolling deploy": self._rolling_deploy,
        }  # fmt: skip
        met = await acts[kind]()
        if met is not None:
            self._tell(kind, before, met)

    def _tell(self, kind: str, before: float, met: int) -> None:
        tally = self.tallies[kind]
        tally.tried += 1
        tally.hit += met > 0
        tally.met += met
        self.log.append(f"{before:.3f} {kind}: {met} under way, {time.time() - before:.2f} s")

    async def heal(self) -> None:
        """No fault goes on: links are quick, nobody is frozen, the server is up."""
        await self.targets.links.do("heal")
        for task in list(self._lasting):
            task.cancel()
        await asyncio.gather(*self._lasting, return_exceptions=True)
        self.targets.crew.thaw()
        self.current = ""

    # Workers

    async def _victim(self) -> tuple[Child, int] | None:
        """A worker and how many executions it holds: mostly the one that holds most. One is always spared."""
        awake = {child.pid: child for child in self.targets.crew.seats if child.alive and not child.frozen}
        if len(awake) < 2:
            return None
        if self._spared is not None:
            awake.pop(self._spared.pid, None)
        query = (
            "select w.pid, count(*) from flowdsl.executions x join flowdsl.workers w on w.id = x.owner"
            " where w.pid = any($1::int[]) and not w.gone group by w.pid"
        )
        rows = await self.targets.postgres.rows(query, list(awake))
        owned = {row["pid"]: int(row["count"]) for row in rows}
        pid = max(awake, key=lambda pid: owned.get(pid, 0)) if self.chance.random() < 0.7 else self.chance.choice(list(awake))
        return awake[pid], owned.get(pid, 0)

    async def _kill_worker(self) -> int:
        found = await self._victim()
        if found is None:
            return 0
        found[0].signal(signal.SIGKILL)
        return found[1]

    async def _stop_worker(self) -> int:
        found = await self._victim()
        if found is None:
            return 0
        found[0].signal(signal.SIGTERM)
        return found[1]

    async def _freeze_worker(self) -> int:
        """For longer than its lease: when it wakes up, what it held is another's."""
        found = await self._victim()
        if found is None:
            return 0
        child, owned = found
        child.frozen = child.signal(signal.SIGSTOP)

        async def thaw(seconds: float) -> None:
            await asyncio.sleep(seconds)
            if child.frozen:
                child.frozen = False
                child.signal(signal.SIGCONT)

        self._last(thaw(self.lease * self.chance.uniform(1.5, 4)))
        return owned

    # The server

    async def _kill_backends(self) -> int:
        """As soon as one is in the middle of something: those that are, and a third of the others."""
        query = (
            "select count(*) filter (where busy and ended) from (select busy, pg_terminate_backend(pid) as ended from ("
            " select pid, state <> 'idle' as busy, bool_or(state <> 'idle') over () as any from pg_stat_activity"
            " where application_name like 'flowdsl%' and pid <> pg_backend_pid()) a where (busy or random() < 0.34) and (\"any\" or $1)) x"
        )
        return await self._met(query, False) or await self._met(query, True, seconds=0)

    async def _met(self, query: str, *arguments: object, seconds: float = 1.0) -> int:
        """Asks until something was met, for so long."""
        until = time.monotonic() + seconds
        while True:
            met = int((await self.targets.postgres.rows(query, *arguments))[0][0])
            if met or time.monotonic() > until:
                return met
            await asyncio.sleep(0.005)

    async def _immediate_stop(self) -> int:
        return await self._restart(signal.SIGQUIT)

    async def _kill_postmaster(self) -> int:
        return await self._restart(signal.SIGKILL)

    async def _restart(self, how: signal.Signals) -> int:
        in_flight = await self._met("select count(*) from flowdsl.executions where owner is not null")
        await self.targets.postgres.end(how)
        await asyncio.sleep(self.chance.uniform(0, 0.8))
        await self.targets.postgres.begin()
        return in_flight

    # The wires

    async def _cut(self) -> int:
        return int((await self.targets.links.do("cut", share=self.chance.choice((0.3, 0.6, 1.0))))["busy"])

    async def _arm(self, kind: str, what: str, count: int) -> int:
        before = await self.targets.links.do("count")
        await self.targets.links.do("arm", kind=kind, statements=what, count=count)
        until = time.monotonic() + 1.5
        while True:
            now = await self.targets.links.do("count")
            met = int(now.get(kind, 0)) - int(before.get(kind, 0))
            if met >= count or time.monotonic() > until:
                return met
            await asyncio.sleep(0.05)

    async def _swallow(self) -> int:
        """What was sent is done; nobody is told."""
        return await self._arm("swallow", self.chance.choice(("records", "records", "commits", "asks")), self.chance.randint(1, 4))

    async def _late_commit(self) -> int:
        """The connection is gone while the server still works on what was sent."""
        return await self._arm("late", self.chance.choice(("records", "records", "commits", "asks")), self.chance.randint(1, 4))

    async def _slow(self) -> int:
        before = await self.targets.links.do("count")
        await self.targets.links.do("delay", seconds=self.chance.choice((0.05, 0.2, 0.4)))
        await asyncio.sleep(self.chance.uniform(0.5, 1.5))
        after = await self.targets.links.do("delay", seconds=0)
        return int(after.get("delayed", 0)) - int(before.get("delayed", 0))

    # The front

    async def _kill_front(self) -> int:
        """While links are slow, so that its calls are on their way."""
        front = self.targets.front()
        if front is None:
            return 0
        await self.targets.links.do("delay", seconds=0.15)
        await asyncio.sleep(0.2)
        met = front.signal(signal.SIGKILL)
        await self.targets.links.do("delay", seconds=0)
        return int(met)

    # The service, and new code

    async def _kill_service(self) -> int:
        """As soon as it owes an answer; while links are slow, so that it owes it for a while."""
        service, until = self.targets.service(), time.monotonic() + 1.5
        if service is None:
            return 0
        await self.targets.links.do("delay", seconds=0.1)
        await _until(lambda: self.targets.calls() > 0 or time.monotonic() > until)
        met = self.targets.calls()
        alive = service.signal(signal.SIGKILL)
        await self.targets.links.do("delay", seconds=0)
        return met if alive else 0

    async def _rolling_deploy(self) -> None:
        """Half of the workers, the service, the other half: each is told to stop, and followed by one of the next release. Told once it is over."""
        crew = self.targets.crew
        if self._deploy is None or self._deploy.done():
            release = int(crew.environment[RELEASE]) + 1
            crew.environment[RELEASE] = str(min(RELEASES, release))
            self._deploy = self._last(self._replace(list(crew.seats), release))

    async def _replace(self, old: list[Child], release: int) -> None:
        before, half, met = time.time(), len(old) // 2, 0
        self._spared = next((child for child in reversed(old) if child.alive and not child.killed), None)
        old.sort(key=lambda child: child is self._spared)
        for child in old[:half]:
            await self._follow(child)
        if (service := self.targets.service()) is not None:
            service.signal(signal.SIGTERM)
        if release <= RELEASES:
            met = await self._beside(old, release)
        self._spared = None
        for child in old[half:]:
            await self._follow(child)
        self._tell("rolling deploy", before, met)

    async def _beside(self, old: list[Child], release: int) -> int:
        """Half way, for a while: how many executions of the new release there were while a worker of the one before it could have taken them."""
        query = "select count(*), coalesce(sum(epoch), 0) from flowdsl.executions where version = $1"
        found, until = 0, time.monotonic() + PATIENCE
        while any(child.alive and not child.killed for child in old):
            found, claims = (await self.targets.postgres.rows(query, release))[0]
            if claims >= CLAIMS or time.monotonic() > until:
                break
            await asyncio.sleep(0.05)
        return int(found)

    async def _follow(self, child: Child) -> None:
        """That one stops, once it can be told to, and another one takes its seat."""
        await _until(lambda: not child.frozen)
        child.signal(signal.SIGTERM)
        await _until(lambda: not child.alive and all(seat.alive for seat in self.targets.crew.seats))

    def _last(self, work: Awaitable[None]) -> asyncio.Task[None]:
        async def run() -> None:
            with suppress(asyncio.CancelledError):
                await work

        task = asyncio.create_task(run())
        self._lasting.add(task)
        task.add_done_callback(self._lasting.discard)
        return task


async def _until(so: Callable[[], bool]) -> None:
    while not so():  # noqa: ASYNC110 (processes tell nobody)
        await asyncio.sleep(0.02)
