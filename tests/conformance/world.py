"""What a case may do with an interpreter. Two drivers carry it out: `in_memory.py` and `on_postgres.py`."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from attrs import define, field, frozen

from flowdsl import Activity, Deployment, Failure, Success, Workflow, bind, this_attempt
from flowdsl.activation import live_entries
from flowdsl.binding import named_in
from flowdsl.flow import Exit, Signal, Status
from flowdsl.journal import ATTEMPT, INTERRUPTED, OPERATOR, Entry
from flowdsl.story import words
from tests.conformance.parts import mark

SOON = 0.25
"""Seconds: what is due within that counts as going on."""
EXITS = (1, 2, 3)


@frozen
class Call:
    """One run of an implementation."""

    activity: str
    request: Any
    number: int
    key: str
    tenant: str

    @property
    def execution(self) -> str:
        return self.key.partition("/")[0]


@frozen
class Row:
    """One execution as a store knows it."""

    id: str
    workflow: str
    key: str | None
    status: Status
    parent: str | None


@define
class Doom:
    """The process dies when the n-th entry from now on is about to be recorded, or just was. Counted over all executions."""

    when: str
    nth: int
    count: int = 0
    struck: bool = False

    def strikes(self, when: str, entries: int) -> bool:
        if self.when != when or self.struck or not entries:
            return False
        self.count += entries
        self.struck = self.count >= self.nth
        return self.struck


@define(slots=False)
class World(ABC):
    """One store, with a process over it that may die. Implementations are scripts: plain or async functions of the request."""

    kind: ClassVar[str]

    scripts: dict[str, Callable[[Any], Any]] = field(factory=dict[str, Callable[[Any], Any]])
    calls: list[Call] = field(factory=list[Call])
    deaths: int = 0
    doom: Doom | None = None
    deployment: Deployment = field(init=False)
    workflows: list[Workflow[Any, Any, Any]] = field(factory=list[Workflow[Any, Any, Any]])

    # Deploying

    def does(self, contract: Activity[Any, Any, Any], script: Callable[[Any], Any]) -> None:
        """What that activity does from now on; without a script it gives its request back."""
        self.scripts[contract.name] = script

    def answers(self, contract: Activity[Any, Any, Any], *answers: Any) -> None:
        """These, one after the other; an exception is raised. The last one from then on."""
        left = list(answers)

        def script(_: Any) -> Any:
            answer = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(answer, BaseException):
                raise answer
            return answer

        self.scripts[contract.name] = script

    def made(self, *workflows: Workflow[Any, Any, Any]) -> Deployment:
        contracts = {contract.name: contract for contract in contracts_of(workflows)}
        self.deployment = Deployment(workflows, [bind(contract, self._implementation(contract)) for contract in contracts.values()])
        return self.deployment

    def _implementation(self, contract: Activity[Any, Any, Any]) -> Callable[[Any], Any]:
        async def scripted(request: Any) -> Any:
            attempt = this_attempt()
            self.calls.append(Call(contract.name, request, attempt.number, attempt.idempotency_key, attempt.tenant))
            script = self.scripts.get(contract.name, Success)
            if contract is mark:
                async with attempt.transaction() as connection:
                    await connection.execute("insert into marks (name) values ($1)", request)
            answer = script(request)
            return await answer if inspect.isawaitable(answer) else answer

        return scripted

    @abstractmethod
    async def deploy(self, *workflows: Workflow[Any, Any, Any]) -> None:
        """Puts code in place. What ran before is stopped in good order first."""

    # Acting

    @abstractmethod
    async def start(self, workflow: Workflow[Any, Any, Any], request: Any, *, key: str | None = None, tenant: str = "default") -> str:
        """Gives the id. Raises `Rejected`."""

    @abstractmethod
    async def signal(self, to: str, signal: Signal[Any], payload: Any, *, delivery: str | None = None, tenant: str = "default") -> None: ...

    @abstractmethod
    async def cancel(self, id: str, reason: str = "asked to") -> None: ...
    @abstractmethod
    async def pause(self, id: str, reason: str = "asked to") -> None: ...
    @abstractmethod
    async def resume(self, id: str) -> None: ...
    @abstractmethod
    async def terminate(self, id: str, reason: str = "asked to") -> None: ...
    @abstractmethod
    async def retry(self, id: str) -> None: ...
    @abstractmethod
    async def rewind(self, id: str, to: str | int) -> None: ...
    @abstractmethod
    async def fork(self, id: str, to: str | int, edits: Any = None) -> str: ...

    @abstractmethod
    async def crash(self) -> None:
        """The process is gone at once, and another one goes on."""

    def dies(self, *, before: int = 0, after: int = 0) -> None:
        """The process is gone just before, or just after, the n-th entry from now on is recorded; another one goes on."""
        self.doom = Doom("before" if before else "after", before or after)

    # Waiting

    @abstractmethod
    async def ended(self, id: str) -> str:
        """Until it has ended or is blocked; gives its status. Fails when it only waits."""

    @abstractmethod
    async def settle(self) -> None:
        """Until everything has ended, is blocked, or waits for something that is not due soon."""

    @abstractmethod
    async def heard(self, id: str) -> None:
        """Until all that was sent to it is in its record; what runs of it may go on meanwhile."""

    @abstractmethod
    async def called(self, contract: Activity[Any, Any, Any], times: int = 1) -> None:
        """Until that activity was called so often."""

    async def exit(self, id: str) -> Exit[Any, Any]:
        status = await self.ended(id)
        assert status != "blocked", f"blocked: {await self.cause(id)}"
        exit = await self.stored_exit(id)
        assert exit is not None
        return exit

    async def run(self, workflow: Workflow[Any, Any, Any], request: Any, *, key: str | None = None) -> Exit[Any, Any]:
        return await self.exit(await self.start(workflow, request, key=key))

    async def blocked(self, id: str) -> str:
        """Until it is blocked; gives the cause."""
        assert await self.ended(id) == "blocked"
        return await self.cause(id) or ""

    # Looking

    @abstractmethod
    async def row(self, id: str) -> Row: ...
    @abstractmethod
    async def stored_exit(self, id: str) -> Exit[Any, Any] | None: ...
    @abstractmethod
    async def cause(self, id: str) -> str | None: ...
    @abstractmethod
    async def journal(self, id: str) -> list[Entry]: ...
    @abstractmethod
    async def children(self, id: str) -> list[Row]:
        """In the order of their start."""

    @abstractmethod
    async def mails(self, id: str) -> list[str]:
        """The names of the signals that wait in its mailbox, in the order of their arrival."""

    @abstractmethod
    async def unmatched(self) -> list[tuple[str, str]]:
        """(signal, key) of each signal to a correlation key that nobody has waited for."""

    @abstractmethod
    async def marks(self) -> list[str]:
        """What `mark` has written, sorted."""

    async def status(self, id: str) -> Status:
        return (await self.row(id)).status

    async def story(self, id: str) -> list[str]:
        """What its journal tells, in short words; what a crash cut short is left out, and so is what was taken back."""
        entries = live_entries(await self.journal(id)) if any(one.kind == OPERATOR for one in await self.journal(id)) else await self.journal(id)
        return [line for entry in entries if entry.kind not in (INTERRUPTED, OPERATOR) for line in words(entry)]

    def requests(self, contract: Activity[Any, Any, Any]) -> list[Any]:
        """What that activity was called with, call by call."""
        return [call.request for call in self.calls if call.activity == contract.name]

    def count(self, contract: Activity[Any, Any, Any]) -> int:
        return len(self.requests(contract))

    @property
    def names(self) -> list[Any]:
        """The requests of all calls, in order."""
        return [call.request for call in self.calls]

    # What must hold, whatever happened

    async def check(self) -> None:
        """Every call is accounted for by its journal: no recorded success is called again, and nothing has two exits."""
        for id in {call.execution for call in self.calls}:
            journal = await self.journal(id)
            if any(entry.kind == OPERATOR for entry in journal):
                continue  # what a person takes back is done again
            told = Counter(entry.step for entry in journal if entry.kind in (*EXITS, ATTEMPT, INTERRUPTED))
            exits = Counter(entry.step for entry in journal if entry.kind in EXITS)
            assert not [step for step, count in exits.items() if count > 1], f"two exits: {exits}"
            if (await self.row(id)).status not in ("succeeded", "failed"):
                continue
            made = Counter(call.key.partition("/")[2] for call in self.calls if call.execution == id)
            lost = {step for step in made if not exits[step]}  # a loser's: its answer was not wanted any more
            assert not {step: (count, told[step]) for step, count in made.items() if step not in lost and count > told[step]}


def contracts_of(workflows: Sequence[Workflow[Any, Any, Any]]) -> Iterator[Activity[Any, Any, Any]]:
    todo, seen = list(workflows), set[str]()
    while todo:
        one = todo.pop()
        if one.name in seen:
            continue
        seen.add(one.name)
        for found in named_in(one.body):
            if isinstance(found, Workflow):
                todo.append(found)
            else:
                yield found.root


def refusal(why: str) -> Callable[[Any], Any]:
    return lambda _: Failure(why)
