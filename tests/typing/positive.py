"""What both checkers infer for every public name, in the order of the reference. Nothing here runs except the definitions."""

from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, Literal, Never, TypeAlias, assert_never, assert_type
from uuid import UUID

from attrs import frozen
from returns.result import Result as ReturnsResult

from flowdsl import (
    Activity,
    Attempt,
    Binding,
    Bound,
    Cancelled,
    Child,
    Concurrency,
    Defect,
    Deployment,
    Died,
    Done,
    Execution,
    Exit,
    Failure,
    Flow,
    FlowError,
    Interrupted,
    Next,
    Node,
    Nodes,
    Outcome,
    RateLimit,
    Result,
    Retry,
    Round,
    Schedule,
    Signal,
    Skipped,
    Status,
    Steps,
    Success,
    TimedOut,
    Workflow,
    activity,
    all_,
    audit,
    bind,
    catching,
    changed,
    dag,
    dag_attempt,
    do,
    each,
    each_attempt,
    execution,
    fail,
    iterate,
    masked,
    node,
    now,
    pure,
    race,
    random,
    report,
    saga,
    scheduled_for,
    signal,
    sleep,
    this_attempt,
    uuid,
    workflow,
)


@frozen
class PageRequest:
    entity: str
    offset: int = 0


@frozen
class Page:
    entity: str
    records: int


@frozen
class NotFound:
    entity: str


@frozen
class Unavailable:
    status: int


@frozen
class Forbidden:
    entity: str


Refused: TypeAlias = NotFound | Forbidden

quota = RateLimit("source", 100, "1m")
slots = Concurrency("source", 4)


# Contracts and workflows


@activity("typing.fetch_page")
def fetch_page(request: PageRequest) -> Result[Page, NotFound | Unavailable]: ...


@activity(
    "typing.save_page",
    retry=Retry.exponential("1s", maximum="60s", attempts=5, on=(Unavailable,), jitter=0.1),
    timeout="30s",
    schedule_to_close=timedelta(hours=24),
    heartbeat="500ms",
    budget=(quota, slots),
    crash="fail",
    transactional=True,
)
def save_page(request: Page) -> Result[int, Unavailable | Interrupted | TimedOut]: ...


@activity("typing.count")
def count(request: str) -> Result[int, Never]: ...


@activity("typing.refusing")
def refusing(request: PageRequest) -> Result[Page, NotFound | Unavailable | Forbidden]: ...


@workflow("typing.sync", key="{entity}:{offset}", reuse="after_close", version=2)
def sync(request: PageRequest) -> Steps[int, NotFound | Unavailable]:
    page = yield from fetch_page(request)
    assert_type(page, Page)
    return page.records


def key_of_page(request: PageRequest) -> str:
    return request.entity


@workflow("typing.named_key", key=key_of_page)
def named_key(request: PageRequest) -> Steps[None, Never]:
    yield from count(request.entity)


@workflow("typing.no_key")
def no_key(request: str) -> Steps[str, Never]:
    number = yield from count(request)
    return str(number)


def activities(request: PageRequest, page: Page) -> None:
    assert_type(fetch_page, Activity[PageRequest, Page, NotFound | Unavailable])
    assert_type(save_page, Activity[Page, int, Unavailable | Interrupted | TimedOut])
    assert_type(fetch_page(request), Flow[Page, NotFound | Unavailable])
    assert_type(count("people"), Flow[int, Never])
    one_call = fetch_page.using(retry=Retry.constant("5s", attempts=2), timeout="10s", schedule_to_close="1h", heartbeat="5s", budget=(quota,))
    assert_type(one_call, Activity[PageRequest, Page, NotFound | Unavailable])
    assert_type(one_call(request), Flow[Page, NotFound | Unavailable])


def workflows(request: PageRequest) -> None:
    assert_type(sync, Workflow[PageRequest, int, NotFound | Unavailable])
    assert_type(named_key, Workflow[PageRequest, None, Never])
    assert_type(no_key, Workflow[str, str, Never])
    assert_type(sync(request), Flow[int, NotFound | Unavailable])
    assert_type(sync.child(request), Flow[int, NotFound | Unavailable])
    assert_type(sync.child(request, key="one"), Flow[int, NotFound | Unavailable])
    assert_type(sync.start(request), Flow[Child[int, NotFound | Unavailable], Never])
    assert_type(sync.start(request, key="one", detached=True), Flow[Child[int, NotFound | Unavailable], Never])
    assert_type(sync.key_of(request), str)
    assert_type(sync.existing(["one", "two"]), Flow[dict[str, Status], Never])
    assert_type(sync.existing({"one": 1}), Flow[dict[str, Status], Never])
    assert_type(sync.existing(key for key in "abc"), Flow[dict[str, Status], Never])


def children(child: Child[int, NotFound]) -> None:
    assert_type(child.id, str)
    assert_type(child.join(), Flow[int, NotFound])
    assert_type(child.cancel(), Flow[None, Never])


def statuses(status: Status) -> str:
    assert_type(status, Literal["open", "blocked", "succeeded", "failed", "cancelled"])
    match status:
        case "open" | "blocked":
            return "goes on"
        case "succeeded" | "failed" | "cancelled":
            return "over"


# Bodies


def the_work_as_a_value(flow: Flow[int, NotFound]) -> None:
    assert_type(iter(flow), Generator[Bound[NotFound], Any, int])
    as_wider(flow)


def as_wider(flow: Flow[int | str, NotFound | Unavailable]) -> None:
    """Takes less too: a flow is covariant in both."""


@do
def part(number: int, text: str = "", *, loud: bool = False) -> Steps[str, NotFound | Unavailable]:
    """A body without a durable name."""
    page = yield from fetch_page(PageRequest(text))
    assert_type(page, Page)
    if page.records > number:
        return (yield from fail(NotFound(text)))
    total = (yield from count("a")) if loud else (yield from pure("none"))
    assert_type(total, int | str)
    assert_type((yield from sleep("1s")), None)
    return str(total)


@do
def without_failure() -> Steps[int, Never]:
    return (yield from count("a"))


def parts() -> None:
    made: Callable[[], Flow[int, Never]] = without_failure
    assert_type(made(), Flow[int, Never])
    assert_type(part(1), Flow[str, NotFound | Unavailable])
    assert_type(part(1, "a", loud=True), Flow[str, NotFound | Unavailable])
    assert_type(part(number=1, text="a"), Flow[str, NotFound | Unavailable])
    assert_type(without_failure(), Flow[int, Never])
    assert_type(pure(1), Flow[int, Never])
    assert_type(fail(NotFound("a")), Flow[Never, NotFound])


# Results in hand


def as_result(result: ReturnsResult[int, NotFound | Unavailable]) -> Result[int, NotFound | Unavailable]:
    return result


def results(outcome: Outcome[int, NotFound | Unavailable]) -> str:
    as_result(outcome)  # it still is a Result
    match outcome:
        case Success(number):
            assert_type(number, int)
            return str(number)
        case Failure(error):
            assert_type(error, NotFound | Unavailable)
            match error:
                case NotFound(entity):
                    return entity
                case Unavailable(status):
                    return str(status)


def results_with_assert_never(outcome: Outcome[int, NotFound]) -> str:
    match outcome:
        case Success(number):
            return str(number)
        case Failure(NotFound(entity)):
            return entity
        case Failure(rest):
            return str(rest)
        case _:
            assert_never(outcome)


def exits(exit: Exit[int, NotFound]) -> str:
    match exit:
        case Success(number):
            assert_type(number, int)
            return str(number)
        case Failure(error):
            assert_type(error, NotFound)
            return error.entity
        case Defect(where, message):
            assert_type((where, message), tuple[str, str])
            return f"{where}: {message}"
        case Cancelled(reason):
            assert_type(reason, str)
            return reason


def raised(error: FlowError) -> Exception:
    return error


def failures_of_the_machine(timed_out: TimedOut, interrupted: Interrupted, died: Died, skipped: Skipped) -> None:
    assert_type(timed_out.after, str)
    assert_type(interrupted, Interrupted)
    assert_type((died.where, died.cause), tuple[str, str])
    assert_type(skipped.because, str)


# Methods


def in_sequence(flow: Flow[int, NotFound]) -> None:
    assert_type(flow.map(str), Flow[str, NotFound])
    assert_type(flow.map(lambda number: number / 2), Flow[float, NotFound])
    assert_type(flow.then(lambda number: count(str(number))), Flow[int, NotFound])
    assert_type(flow.then(lambda number: save_page(Page("a", number))), Flow[int, NotFound | Unavailable | Interrupted | TimedOut])
    assert_type(pure(1).then(lambda number: pure(str(number))), Flow[str, Never])


@do
def attempted(flow: Flow[Page, NotFound | Unavailable]) -> Steps[int, Never]:
    assert_type(flow.attempt(), Flow[Outcome[Page, NotFound | Unavailable], Never])
    assert_type(pure(1).attempt(), Flow[Outcome[int, Never], Never])
    outcome = yield from flow.attempt()
    match outcome:
        case Success(page):
            assert_type(page, Page)
            return page.records
        case Failure(error):
            assert_type(error, NotFound | Unavailable)
            return 0


@do
def attempted_inside_match(flow: Flow[Page, NotFound | Unavailable]) -> Steps[Page | None, Never]:
    match (yield from flow.attempt()):
        case Success(page) if page.records:
            return page
        case _:
            return None


def nothing_there(error: NotFound | Unavailable) -> Flow[None, Forbidden]:
    return fail(Forbidden(str(error)))


def empty(error: NotFound) -> Flow[int, Never]:
    return pure(len(error.entity))


def caught(
    one: Flow[Page, NotFound],
    two: Flow[Page, NotFound | Unavailable],
    three: Flow[Page, NotFound | Unavailable | Forbidden],
) -> None:
    assert_type(two.catch(nothing_there), Flow[Page | None, Forbidden])
    assert_type(two.catch(lambda error: pure(str(error))), Flow[Page | str, Never])
    assert_type(one.catch(empty), Flow[Page | int, Never])
    assert_type(catching(NotFound, empty)(two), Flow[Page | int, Unavailable])
    assert_type(catching(NotFound, lambda error: fail(Forbidden(error.entity)))(two), Flow[Page, Unavailable | Forbidden])
    assert_type(catching(Refused, lambda error: count(assert_type(error, NotFound | Forbidden).entity))(three), Flow[Page | int, Unavailable])
    assert_type(catching(Refused, lambda error: count(error.entity))(one), Flow[Page | int, Never])
    assert_type(catching(NotFound, empty)(one), Flow[Page | int, Never])  # none remains
    # That a member is not there is nothing that a checker can see: it takes nothing out.
    assert_type(catching(Unavailable, lambda _: pure(None))(one), Flow[Page | None, NotFound])
    # Two members remain: mypy wants the result annotated, and then checks the annotation.
    left: Flow[Page | int, Unavailable | Forbidden] = catching(NotFound, empty)(three)
    assert_type(left, Flow[Page | int, Unavailable | Forbidden])


def isolated(flow: Flow[int, NotFound], safe: Flow[int, Never]) -> None:
    assert_type(flow.isolate(), Flow[int, NotFound | Died])
    assert_type(safe.isolate(), Flow[int, Died])
    assert_type(safe.isolate().attempt(), Flow[Outcome[int, Died], Never])


def closing(exit: Exit[int, NotFound]) -> Flow[None, Unavailable]:
    return audit("CLOSED", exit).then(lambda _: fail(Unavailable(503)))


def finalized(flow: Flow[int, NotFound]) -> None:
    assert_type(flow.ensure(closing), Flow[int, NotFound])
    assert_type(flow.ensure(lambda exit: audit("CLOSED", assert_type(exit, Exit[int, NotFound]))), Flow[int, NotFound])
    assert_type(flow.ensure(lambda _: fetch_page(PageRequest("a"))), Flow[int, NotFound])  # its answer and failure are nobody's


def undone(flow: Flow[Page, NotFound], made: Flow[str, Never]) -> None:
    assert_type(flow.compensate(save_page), Flow[Page, NotFound])
    assert_type(flow.compensate(lambda page: count(assert_type(page, Page).entity)), Flow[Page, NotFound])
    assert_type(made.compensate(count), Flow[str, Never])
    assert_type(saga(flow.compensate(save_page)), Flow[Page, NotFound])
    assert_type(saga(flow).attempt(), Flow[Outcome[Page, NotFound], Never])


def bounded(flow: Flow[int, NotFound], safe: Flow[int, Never], at: datetime) -> None:
    assert_type(flow.timeout("30m"), Flow[int, NotFound | TimedOut])
    assert_type(flow.timeout(timedelta(minutes=30)), Flow[int, NotFound | TimedOut])
    assert_type(flow.timeout(at), Flow[int, NotFound | TimedOut])
    assert_type(flow.timeout(at, Unavailable(504)), Flow[int, NotFound | Unavailable])
    assert_type(flow.timeout("1s", failure=NotFound("a")), Flow[int, NotFound])
    assert_type(safe.timeout("1s", Unavailable(504)), Flow[int, Unavailable])
    assert_type(safe.timeout("1s"), Flow[int, TimedOut])


def again(flow: Flow[int, NotFound]) -> None:
    assert_type(flow.retry(Retry.linear("1s", attempts=3)), Flow[int, NotFound])
    assert_type(masked(flow), Flow[int, NotFound])
    assert_type(masked(pure(1)), Flow[int, Never])


# Several at once


class F1: ...


class F2: ...


class F3: ...


class F4: ...


class F5: ...


class F6: ...


class F7: ...


class F8: ...


def all_together(
    a: Flow[int, F1],
    b: Flow[str, F2],
    c: Flow[bytes, F3],
    d: Flow[float, F4],
    e: Flow[None, F5],
    f: Flow[Page, F6],
    g: Flow[UUID, F7],
    h: Flow[datetime, F8],
) -> None:
    assert_type(all_(a, b), Flow[tuple[int, str], F1 | F2])
    assert_type(all_(a, b, c), Flow[tuple[int, str, bytes], F1 | F2 | F3])
    assert_type(all_(a, b, c, d), Flow[tuple[int, str, bytes, float], F1 | F2 | F3 | F4])
    assert_type(all_(a, b, c, d, e), Flow[tuple[int, str, bytes, float, None], F1 | F2 | F3 | F4 | F5])
    assert_type(all_(a, b, c, d, e, f), Flow[tuple[int, str, bytes, float, None, Page], F1 | F2 | F3 | F4 | F5 | F6])
    assert_type(all_(a, b, c, d, e, f, g), Flow[tuple[int, str, bytes, float, None, Page, UUID], F1 | F2 | F3 | F4 | F5 | F6 | F7])
    assert_type(
        all_(a, b, c, d, e, f, g, h),
        Flow[tuple[int, str, bytes, float, None, Page, UUID, datetime], F1 | F2 | F3 | F4 | F5 | F6 | F7 | F8],
    )
    assert_type(all_(a, pure("b")), Flow[tuple[int, str], F1])
    assert_type(all_(pure(1), pure("b")), Flow[tuple[int, str], Never])
    assert_type(all_(pure(1), pure("b"), count("c")), Flow[tuple[int, str, int], Never])
    n = now()
    assert_type(all_(n, n, n, n, n, n, n, n), Flow[tuple[datetime, datetime, datetime, datetime, datetime, datetime, datetime, datetime], Never])
    assert_type(all_(*[a, a]), Flow[tuple[int, ...], F1])


@do
def unpacked() -> Steps[int, NotFound | Unavailable]:
    page, number = yield from all_(fetch_page(PageRequest("a")), count("a"))
    assert_type(page, Page)
    assert_type(number, int)
    return page.records + number


def the_first(
    a: Flow[int, F1],
    b: Flow[str, F2],
    c: Flow[bytes, F3],
    d: Flow[float, F4],
    e: Flow[None, F5],
    f: Flow[Page, F6],
    g: Flow[UUID, F7],
    h: Flow[datetime, F8],
) -> None:
    assert_type(race(a, b), Flow[int | str, F1 | F2])
    assert_type(race(a, b, c), Flow[int | str | bytes, F1 | F2 | F3])
    assert_type(race(a, b, c, d), Flow[int | str | bytes | float, F1 | F2 | F3 | F4])
    assert_type(race(a, b, c, d, e), Flow[int | str | bytes | float | None, F1 | F2 | F3 | F4 | F5])
    assert_type(race(a, b, c, d, e, f), Flow[int | str | bytes | float | None | Page, F1 | F2 | F3 | F4 | F5 | F6])
    assert_type(race(a, b, c, d, e, f, g), Flow[int | str | bytes | float | None | Page | UUID, F1 | F2 | F3 | F4 | F5 | F6 | F7])
    assert_type(
        race(a, b, c, d, e, f, g, h),
        Flow[int | str | bytes | float | None | Page | UUID | datetime, F1 | F2 | F3 | F4 | F5 | F6 | F7 | F8],
    )
    assert_type(race(a, a), Flow[int, F1])
    assert_type(race(sleep("1s"), count("a")), Flow[int | None, Never])
    assert_type(race(sleep("1s"), count("a"), now(), count("b")), Flow[int | None | datetime, Never])
    assert_type(race(sleep("1s"), count("a")).timeout("1s", NotFound("a")), Flow[int | None, NotFound])
    assert_type(race(a, sleep("1s")), Flow[int | None, F1])
    assert_type(race(*[a, a]), Flow[int, F1])


def one_by_one(names: list[str], requests: tuple[PageRequest, ...]) -> None:
    assert_type(each(requests, fetch_page), Flow[list[Page], NotFound | Unavailable])
    assert_type(each(names, lambda name: fetch_page(PageRequest(name)), concurrency=4), Flow[list[Page], NotFound | Unavailable])
    assert_type(each((name for name in names), count), Flow[list[int], Never])
    assert_type(each_attempt(requests, fetch_page), Flow[list[Outcome[Page, NotFound | Unavailable]], Never])
    assert_type(each_attempt(names, lambda name: count(name).isolate(), concurrency=64), Flow[list[Outcome[int, Died]], Never])


@do
def gone_through(requests: list[PageRequest]) -> Steps[int, Never]:
    outcomes = yield from each_attempt(requests, fetch_page)
    failed = [outcome.failure() for outcome in outcomes if isinstance(outcome, Failure)]
    assert_type(failed, list[NotFound | Unavailable])
    pages = [outcome.unwrap() for outcome in outcomes if isinstance(outcome, Success)]
    assert_type(pages, list[Page])
    return len(pages)


def graphs(names: list[str]) -> None:
    assert_type(node(fetch_page(PageRequest("a"))), Node[Page, NotFound | Unavailable])
    assert_type(node(count("a"), after=["b"], soft=("c",)), Node[int, Never])
    alike = {name: node(fetch_page(PageRequest(name)), after=names[:1]) for name in names}
    assert_type(dag(alike), Flow[dict[str, Page], NotFound | Unavailable])
    assert_type(dag(alike, concurrency=2), Flow[dict[str, Page], NotFound | Unavailable])
    assert_type(dag_attempt(alike, concurrency=2), Flow[dict[str, Outcome[Page, NotFound | Unavailable] | Skipped], Never])
    mixed: Nodes[object, NotFound | Unavailable] = {"a": node(fetch_page(PageRequest("a"))), "b": node(count("b"), after=["a"])}
    assert_type(dag(mixed), Flow[dict[str, object], NotFound | Unavailable])


def of_a_node(outcome: Outcome[Page, NotFound] | Skipped) -> str:
    match outcome:
        case Success(page):
            assert_type(page, Page)
            return page.entity
        case Failure(error):
            assert_type(error, NotFound)
            return error.entity
        case Skipped(because):
            assert_type(because, str)
            return because


# Loops


@do
def round_of_pages(state: tuple[int, int]) -> Steps[Round[tuple[int, int], str], NotFound | Unavailable]:
    offset, seen = state
    page = yield from fetch_page(PageRequest("a", offset))
    if page.records == 0:
        return Done(str(seen))
    return Next((offset + 1, seen + page.records))


def next_number(number: int) -> Flow[Round[int, str], Never]:
    return pure(Next(number + 1)) if number < 3 else pure(Done("three"))


def loops() -> None:
    assert_type(iterate((0, 0), round_of_pages), Flow[str, NotFound | Unavailable])
    assert_type(iterate(0, next_number), Flow[str, Never])


def rounds(round: Round[int, str]) -> int | str:
    match round:
        case Next(state):
            assert_type(state, int)
            return state
        case Done(value):
            assert_type(value, str)
            return value


# Signals


Order: TypeAlias = Page | PageRequest
paid = signal("typing.paid", int)
order = signal("typing.order", Order)
either = signal("typing.either", int | str)
many = signal("typing.many", tuple[Page, ...])


def signals() -> None:
    assert_type(paid, Signal[int])
    assert_type(order, Signal[Page | PageRequest])
    assert_type(either, Signal[int | str])
    assert_type(many, Signal[tuple[Page, ...]])
    assert_type(paid.receive(), Flow[int, Never])
    assert_type(order.receive("a"), Flow[Page | PageRequest, Never])
    assert_type(order.receive(key="a"), Flow[Page | PageRequest, Never])
    assert_type(order.take(), Flow[Page | PageRequest | None, Never])
    assert_type(paid.take("a"), Flow[int | None, Never])
    assert_type(order.send("execution", PageRequest("a")), Flow[None, Never])
    assert_type(either.send(to="execution", payload="a"), Flow[None, Never])


@do
def any_of_several() -> Steps[str, TimedOut]:
    news = yield from race(paid.receive(), order.receive()).timeout("1d")
    assert_type(news, int | Page | PageRequest)
    match news:
        case int():
            return "paid"
        case Page() | PageRequest():
            return "ordered"


# What the machine knows, and what people see


@do
def asked() -> Steps[timedelta, Never]:
    at = yield from now()
    assert_type(at, datetime)
    assert_type((yield from uuid()), UUID)
    assert_type((yield from random()), float)
    this = yield from execution()
    assert_type(this, Execution)
    assert_type((this.id, this.tenant, this.workflow), tuple[str, str, str])
    assert_type((this.key, this.parent), tuple[str | None, str | None])
    assert_type(this.started_at, datetime)
    yield from sleep(at + timedelta(hours=1))
    return (yield from now()) - at


def told() -> None:
    assert_type(sleep("30m"), Flow[None, Never])
    assert_type(sleep(timedelta(seconds=1)), Flow[None, Never])
    assert_type(now(), Flow[datetime, Never])
    assert_type(uuid(), Flow[UUID, Never])
    assert_type(random(), Flow[float, Never])
    assert_type(execution(), Flow[Execution, Never])
    assert_type(report("half"), Flow[None, Never])
    assert_type(report("half", done=1, total=2), Flow[None, Never])
    assert_type(audit("SEEN"), Flow[None, Never])
    assert_type(audit("SEEN", Page("a", 1)), Flow[None, Never])
    assert_type(changed("new-order"), Flow[bool, Never])


# Implementations


async def fetch_page_async(request: PageRequest) -> Result[Page, NotFound | Unavailable]:
    attempt = this_attempt()
    assert_type(attempt, Attempt)
    assert_type((attempt.idempotency_key, attempt.number, attempt.tenant), tuple[str, int, str])
    assert_type((attempt.deadline, attempt.cancelled), tuple[datetime, bool])
    assert_type(attempt.last_heartbeat, object)
    assert_type(attempt.heartbeat({"page": 1}), None)
    assert_type(attempt.transaction(), AbstractAsyncContextManager[Any])
    if request.offset:
        return Failure(NotFound(request.entity))
    return Success(Page(request.entity, 1))


def fetch_page_in_a_thread(request: PageRequest) -> Result[Page, NotFound | Unavailable]:
    return Success(Page(request.entity, 1))


def fetch_page_with_less(request: object) -> Outcome[Page, NotFound]:
    return Failure(NotFound(str(request)))


class Source:
    async def fetch_page(self, request: PageRequest) -> Result[Page, NotFound | Unavailable]:
        return Failure(Unavailable(503))

    def later(self, request: PageRequest) -> Awaitable[Result[Page, Unavailable]]:
        raise LookupError(request)

    async def __call__(self, request: PageRequest) -> Result[Page, NotFound]:
        return Failure(NotFound(request.entity))


def implementations(source: Source) -> None:
    assert_type(bind(fetch_page, fetch_page_async), Binding)
    assert_type(bind(fetch_page, fetch_page_in_a_thread), Binding)
    assert_type(bind(fetch_page, fetch_page_with_less), Binding)  # takes more, gives less
    assert_type(bind(fetch_page, source.fetch_page), Binding)
    assert_type(bind(fetch_page, source.later), Binding)
    assert_type(bind(fetch_page, source), Binding)
    assert_type(bind(fetch_page.using(timeout="1s"), source.fetch_page), Binding)
    assert_type(bind(count, lambda text: Success(len(text))), Binding)
    assert_type(Deployment(workflows=[sync, no_key], bindings=[bind(fetch_page, source), bind(count, lambda _: Success(1))]), Deployment)


# Policies


def policies() -> None:
    assert_type(Retry.exponential("1s"), Retry)
    assert_type(Retry.exponential("1s", maximum=timedelta(seconds=60), attempts=5, on=(NotFound, Unavailable), jitter=0.2), Retry)
    assert_type(Retry.linear(timedelta(seconds=1), on=lambda failure: failure.status in {429, 503}), Retry)
    assert_type(Retry.constant("5s", attempts=2), Retry)
    assert_type(RateLimit("source", 100, "1m"), RateLimit)
    assert_type(RateLimit(name="source", limit=100, per=timedelta(minutes=1)), RateLimit)
    assert_type(Concurrency("source", limit=4), Concurrency)
    assert_type(RateLimit("source", 100, "1m", burst=10, each="tenant"), RateLimit)
    assert_type(Concurrency("source", 4, each="workflow"), Concurrency)


# Schedules


def schedules(me: Execution) -> None:
    assert_type(Schedule.cron("0 3 * * *", no_key, "a", id="a", zone="Europe/Berlin", overlap="queue", catch_up="one", within="1d"), Schedule)
    assert_type(Schedule.every(timedelta(minutes=15), sync, PageRequest("a"), id="a", jitter="1m", tenant="acme"), Schedule)
    assert_type(Deployment([no_key], schedules=[Schedule.every("15m", no_key, "a", id="a")]), Deployment)
    assert_type(scheduled_for(me), datetime | None)
