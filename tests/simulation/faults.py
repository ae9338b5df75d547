"""What the seed does to a run: which faults, how often, and when. Each fault has a number, so that a failing run can be had without it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, Final

from attrs import define, field, frozen

from tests.simulation.loop import Loop, Process
from tests.simulation.system import World

KINDS: Final = {
    "kill": 3, "kill_front": 1, "stop": 1, "freeze": 2, "block": 2, "cut": 3, "lose_reply": 3, "commit_late": 2, "pause": 3, "restart": 1,
    "refuse": 1,
    "deaf": 2, "jump": 1, "slow": 2,
}  # fmt: skip
"""Each kind, and its weight where a seed draws it at all."""


@frozen
class Fault:
    number: int
    at: float
    kind: str
    whom: str = ""

    def __str__(self) -> str:
        return f"fault {self.number}: {self.kind} {self.whom}".rstrip()


@define
class Plan:
    """What a seed draws before anything happens."""

    kinds: dict[str, int]
    every: float
    """Callbacks between two faults, on average."""
    span: float
    """Virtual seconds with faults."""

    @classmethod
    def drawn(cls, chance: Random) -> Plan:
        kinds = {name: weight for name, weight in KINDS.items() if chance.random() < 0.5}
        every = chance.choice((60.0, 200.0, 600.0, 2000.0))
        return cls(kinds if chance.random() < 0.9 else {}, every, chance.choice((2.0, 4.0, 8.0)))


@define
class Nemesis:
    """Strikes between two callbacks, wherever the runtime happens to be."""

    world: World
    server: Any
    plan: Plan
    chance: Random
    skip: frozenset[int]
    heard: Callable[[str], None]
    struck: list[Fault] = field(factory=list[Fault])
    active: bool = True
    _number: int = 0
    _lease: float = 1.0

    def __attrs_post_init__(self) -> None:
        self._lease = self.world.tuning.lease
        self.loop.strikes_at = self._gap() if self.plan.kinds else 1 << 60

    @property
    def loop(self) -> Loop:
        return self.world.loop

    def _gap(self) -> int:
        return self.loop.steps + 1 + int(self.chance.expovariate(1 / self.plan.every))

    def between(self) -> None:
        self.loop.strikes_at = self._gap() if self.active else 1 << 60
        if not self.active:
            return
        self._number += 1
        own = Random(self.chance.getrandbits(64))  # a fault that is left out must not change those after it
        kind = own.choices(list(self.plan.kinds), list(self.plan.kinds.values()))[0]
        if self._number in self.skip:
            return
        strike = getattr(self, f"_{kind}")
        whom = strike(own)
        if whom is not None:
            fault = Fault(self._number, self.loop.time(), kind, whom)
            self.struck.append(fault)
            self.loop.note(str(fault))
            self.heard(str(fault))

    # Processes

    def _victim(self, own: Random) -> tuple[str, Process, asyncio.Event] | None:
        names = [name for name, (process, _) in self.world.workers.items() if not process.dead]
        if not names:
            return None
        name = own.choice(names)
        return name, *self.world.workers[name]

    def _later(self, seconds: float, work: Callable[[], object]) -> None:
        self.loop.world.start(lambda: _after(seconds, work))

    def _kill(self, own: Random) -> str | None:
        victim = self._victim(own)
        if victim is None:
            return None
        name, process, _ = victim
        self.dead(name, process)
        self._later(own.choice((0.01, 0.3, 2.0)), self.world.begin_worker)
        return name

    def dead(self, name: str, process: Process) -> None:
        self.loop.kill(process)
        self.world.workers.pop(name, None)
        self.world.living.pop(name, None)
        self.server.died(process)

    def _kill_front(self, own: Random) -> str | None:
        front = self.world.front
        if front is None or front.dead:
            return None
        self.loop.kill(front)
        self.server.died(front)
        self._later(own.choice((0.01, 0.3)), self.world.begin_front)
        return front.name

    def _stop(self, own: Random) -> str | None:
        victim = self._victim(own)
        if victim is None or victim[2].is_set():
            return None
        name, _, stop = victim
        stop.set()
        self._later(own.choice((0.0, 0.5)), self.world.begin_worker)
        return name

    def _freeze(self, own: Random) -> str | None:
        victim = self._victim(own)
        if victim is None or victim[1].frozen:
            return None
        process, seconds = victim[1], self._lease * own.choice((0.2, 1.1, 2.5))
        process.frozen = True

        def thaw() -> None:
            process.frozen = False
            self.heard(f"{process.name} goes on")

        self._later(seconds, thaw)
        return f"{process.name} for {seconds:.1f} s"

    def _block(self, own: Random) -> str | None:
        """Its main loop only: the heart beats on."""
        victim = self._victim(own)
        if victim is None or victim[1].main.blocked:
            return None
        lane, seconds = victim[1].main, self._lease * own.choice((0.3, 1.5, 6.0))
        lane.blocked = True

        def free() -> None:
            lane.blocked = False
            self.heard(f"the loop of {lane.name} comes round")

        self._later(seconds, free)
        return f"{lane.name} for {seconds:.1f} s"

    # The server, and the way to it

    def _cut(self, own: Random) -> str | None:
        return self.server.cut(own)

    def _lose_reply(self, own: Random) -> str | None:
        return self.server.lose_reply(own)

    def _commit_late(self, own: Random) -> str | None:
        return self.server.commit_late(own, own.choice((0.05, 0.5, self._lease * 1.2)))

    def _pause(self, own: Random) -> str | None:
        return self.server.hold_up(own, own.choice((0.02, 0.2, self._lease * 1.2)))

    def _slow(self, own: Random) -> str | None:
        return self.server.slow(own.choice((0.01, 0.1)), own.choice((0.5, 2.0)))

    def _restart(self, own: Random) -> str | None:
        return self.server.restart(own.choice((0.05, 0.5)))

    def _refuse(self, own: Random) -> str | None:
        return self.server.refuse(own.choice((0.1, 1.0, self._lease * 1.5)))

    def _deaf(self, own: Random) -> str | None:
        return self.server.deaf(own.choice((0.5, 3.0)))

    def _jump(self, own: Random) -> str | None:
        return self.server.jump(own.choice((-0.5, 0.3, 2.0)))

    def heal(self) -> None:
        """No more faults: who is frozen goes on, who is gone is back, the server answers."""
        self.active = False
        for process, _ in self.world.workers.values():
            process.frozen = process.main.blocked = False
        self.server.heal()


async def _after(seconds: float, work: Callable[[], object]) -> None:
    await asyncio.sleep(seconds)
    work()
