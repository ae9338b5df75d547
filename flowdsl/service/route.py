"""The route table's row: one place from which come the route, its access rule, its description in OpenAPI and its tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from urllib.parse import quote

import structlog
from attrs import define, field, frozen
from starlette.requests import Request

from flowdsl.binding import Deployment
from flowdsl.codec import codec
from flowdsl.codec.records import declared
from flowdsl.errors import DefinitionError, StoreError
from flowdsl.postgres.allowances import Allowance, Allowances
from flowdsl.postgres.operating import Operator
from flowdsl.postgres.store import Store
from flowdsl.postgres.tenants import not_apart, of_tenant
from flowdsl.postgres.worker import Worker
from flowdsl.service.access import ROLES, Access, Caller, Role
from flowdsl.service.settings import Limits, Server
from flowdsl.service.webhooks import Webhooks

if TYPE_CHECKING:
    from flowdsl.metrics import Metrics
    from flowdsl.service.watching import StoreNumbers
    from flowdsl.tracing import Tracing

log = structlog.get_logger("flowdsl")

Rule: TypeAlias = Role | Literal["anyone"]
Check: TypeAlias = Callable[[], Awaitable[object]]
"""Asks something that the service depends on whether it is well; raises when it is not."""


@define(eq=False)
class Service:
    """What all requests share. `dsn` is opened when the first request comes, unless a store is given."""

    deployment: Deployment
    settings: Server
    access: Access
    dsn: str | None = None
    store_given: Store | None = None
    worker: Worker | None = None
    """The worker of this process, if there is one: starts go through it, many in one statement."""
    checks: Mapping[str, Check] = field(factory=dict[str, Check])
    limits: Limits = field(factory=Limits)
    metrics: Metrics | None = None
    numbers: StoreNumbers | None = None
    tracing: Tracing | None = None
    stopping: asyncio.Event = field(factory=asyncio.Event)
    """Set before the server stops: open streams end then."""
    streams: int = 0
    """Streams of events that are open."""
    reads: dict[tuple[str, ...], float] = field(factory=dict[tuple[str, ...], float])
    """When who was last shown which payloads."""
    _own: Store | None = None
    _apart: bool | None = None
    _opening: asyncio.Lock = field(factory=asyncio.Lock)
    _webhooks: Webhooks | None = None
    _acting: asyncio.Task[None] | None = None
    _allowances: Allowances | None = None
    checking: asyncio.Task[Any] | None = None
    """Readiness, as it is being asked."""
    late: dict[asyncio.Future[Any], None] = field(factory=dict[asyncio.Future[Any], None])
    """What nobody waits for any more: a store that is silent may keep it for a while."""

    async def store(self) -> Store:
        """The store. Raises `StoreError` when it cannot be reached."""
        if self.store_given is not None:
            return self.store_given
        async with self._opening:
            if self._own is None:
                if self.dsn is None:
                    raise StoreError("the service has no database", "Give create_app a store, or a dsn")
                self._own = await Store.open(self.dsn)
            return self._own

    async def store_of(self, tenant: str) -> Store:
        """The store as that tenant sees it: what a statement forgets to ask for, the server does. Raises `StoreError` where it cannot and must."""
        store = await self.store()
        if self._apart is None:
            why = await not_apart(store)
            if why is not None and self.settings.require_row_level_security:
                raise StoreError(f"row-level security is required, and the server does not keep tenants apart: {why}", "Do that first")
            if why is not None:
                log.warning("tenants.not_apart", why=why, remains="the condition in every statement")
            self._apart = why is None
        return of_tenant(store, tenant) if self._apart else store

    async def webhooks(self) -> Webhooks:
        """The deployment's webhooks; what came is acted on from now on."""
        store = await self.store()
        if self._webhooks is None:
            self._webhooks = Webhooks(self.deployment.webhooks, store, self.settings, told=self._came, store_of=self.store_of)
            self._acting = asyncio.create_task(self._webhooks.run(), name="flowdsl-webhooks")
        return self._webhooks

    def _came(self, endpoint: str, verdict: str) -> None:
        if self.metrics is not None:
            self.metrics.webhooks.labels(endpoint, verdict).inc()

    async def allowed(self, what: str, tenant: str) -> float:
        """0: that tenant may. Else the seconds after which it is worth asking again."""
        if self._allowances is None:
            found = {
                "starts": Allowance(self.limits.starts, self.limits.starts_at_once or self.limits.starts),
                "signals": Allowance(self.limits.signals, self.limits.signals_at_once or self.limits.signals),
            }
            self._allowances = Allowances(await self.store(), {name: one for name, one in found.items() if one.limit})
        return await self._allowances.take(what, tenant)

    def abandon(self, task: asyncio.Future[Any]) -> None:
        """Cancels it, and does not wait for its end."""
        task.cancel()
        self.late[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self.late.pop(task, None)
        if not task.cancelled():
            task.exception()  # nobody asks any more

    async def close(self) -> None:
        """Ends open streams, and closes the store if the service opened it."""
        self.stopping.set()
        if self.numbers is not None:
            await self.numbers.close()
        if self._allowances is not None:
            await self._allowances.close()
        if self._acting is not None:
            self._acting.cancel()
            await asyncio.gather(self._acting, return_exceptions=True)
        own, self._own, self._webhooks, self._acting, self._allowances = self._own, None, None, None, None
        if own is not None:
            await own.close()


@frozen(eq=False)
class Call:
    """One request: who asks, what for, and what they sent, as its type says."""

    service: Service
    request: Request
    caller: Caller
    opened: Store | None
    """None on a route that must answer without a store."""
    body: Any = None
    query: Any = None

    @property
    def store(self) -> Store:
        if self.opened is None:
            raise StoreError("this route has no store", "Take storeless off the route")
        return self.opened

    @property
    def tenant(self) -> str:
        return self.caller.tenant

    def path(self, name: str) -> str:
        """What stands in the path in place of `{name}`."""
        return str(self.request.path_params[name])

    @property
    def operator(self) -> Operator:
        return Operator(self.store, self.service.deployment, by=self.caller.name, tenant=self.tenant)

    def url(self, *parts: str) -> str:
        """A path of the API, from the root of the server, also where the service is mounted into another app."""
        return str(self.request.scope.get("root_path", "")) + "/api/v1/" + "/".join(quote(part, safe="") for part in parts)


@frozen
class Reply:
    """What is answered, if it is not 200."""

    value: Any
    status: int = 200
    headers: Mapping[str, str] = field(factory=dict[str, str])


Endpoint: TypeAlias = Callable[[Call], Awaitable[Any]]

INPUT: Final = "the input of the workflow"
"""As `request`: the body is what the workflow named in the path takes."""


@frozen(eq=False)
class Route:
    """A row. Raises `DefinitionError` for one without a rule."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    name: str
    summary: str
    rule: Rule
    endpoint: Endpoint
    answers: Mapping[int, Any]
    """Of each status its type; None for an answer that is not JSON."""
    request: Any = None
    query: Any = None
    problems: tuple[int, ...] = ()
    """Beside those that every route may give."""
    example: Any = None
    """A body as somebody may send it."""
    headers: Mapping[str, str] = field(factory=dict[str, str])
    """Those that it reads, and what for."""
    streams: bool = False
    media: str = "application/json"
    """Of its answers, problems apart."""
    spends: Literal["starts", "signals"] | None = None
    """What its tenant may do so many times in a minute."""
    storeless: bool = False
    """Whether it answers, in its own words, also when there is no store."""

    def __attrs_post_init__(self) -> None:
        if self.rule not in (*ROLES, "anyone"):
            raise DefinitionError(f"route {self.name}", f"{self.rule!r} is no rule", f"Say who may call it: {', '.join(ROLES)}, or anyone")
        for form in (self.request if self.request != INPUT else None, self.query, *self.answers.values()):
            if form is not None:
                codec(form)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names in the path."""
        return tuple(part[1:-1] for part in self.path.split("/") if part.startswith("{"))

    @property
    def may_be_empty(self) -> bool:
        """Whether the body may be left out: all of its fields have defaults."""
        return self.request is not None and self.request != INPUT and not any(each.required for each in declared(self.request))


__all__ = ["INPUT", "Call", "Check", "Endpoint", "Reply", "Route", "Rule", "Service"]
