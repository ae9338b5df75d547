"""Wrong lines: both checkers must refuse each of them, and say so too when a line is no longer wrong.

Each carries the code under which mypy refuses it and the rule under which pyright does; an ignore that is not needed is an error of its own.
"""

from typing import Never, TypeAlias, assert_never

from attrs import frozen

from flowdsl import (
    Child,
    Concurrency,
    Done,
    Exit,
    Failure,
    Flow,
    Next,
    Nodes,
    Outcome,
    Result,
    Retry,
    Round,
    Schedule,
    Skipped,
    Steps,
    Success,
    activity,
    all_,
    audit,
    bind,
    catching,
    dag,
    do,
    each,
    fail,
    iterate,
    node,
    pure,
    race,
    saga,
    signal,
    sleep,
    workflow,
)


@frozen
class PageRequest:
    entity: str


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


Order: TypeAlias = Page | PageRequest
order = signal("typing.order", Order)


@activity("typing.fetch_page")
def fetch_page(request: PageRequest) -> Result[Page, NotFound | Unavailable]: ...


@activity("typing.count")
def count(request: str) -> Result[int, Never]: ...


@workflow("typing.sync")
def sync(request: PageRequest) -> Steps[int, NotFound | Unavailable]:
    page = yield from fetch_page(request)
    return page.records


# Bodies


@do
def undeclared_failure(request: PageRequest) -> Steps[int, NotFound]:
    page = yield from fetch_page(request)  # type: ignore[misc]  # pyright: ignore[reportReturnType]
    return page.records


@do
def undeclared_failure_of_a_race() -> Steps[None, Never]:
    yield from race(sleep("1s"), sleep("2s")).timeout("1s", NotFound("a"))  # type: ignore[misc]  # pyright: ignore[reportReturnType]


@do
def undeclared_failure_of_all(request: PageRequest) -> Steps[None, Unavailable]:
    yield from all_(count("a"), fetch_page(request))  # type: ignore[misc]  # pyright: ignore[reportReturnType]


@do
def undeclared_timeout() -> Steps[int, NotFound]:
    return (yield from count("a").timeout("1s"))  # type: ignore[misc]  # pyright: ignore[reportReturnType]


@do
def undeclared_own_failure() -> Steps[int, NotFound]:
    return (yield from fail(Forbidden("a")))  # type: ignore[misc]  # pyright: ignore[reportReturnType]


@do
def undeclared_failure_of_a_child(request: PageRequest) -> Steps[int, Unavailable]:
    return (yield from sync.child(request))  # type: ignore[misc]  # pyright: ignore[reportReturnType]


@do
def undeclared_failure_after_catching(request: PageRequest) -> Steps[Page | None, Never]:
    return (yield from catching(NotFound, lambda _: pure(None))(fetch_page(request)))  # type: ignore[misc]  # pyright: ignore[reportReturnType]


@do
def undeclared_failure_of_a_handler(request: PageRequest) -> Steps[Page, Never]:
    return (yield from fetch_page(request).catch(lambda _: fail(Forbidden("a"))))  # type: ignore[misc]  # pyright: ignore[reportReturnType]


@do
def undeclared_death(text: str) -> Steps[int, Never]:
    return (yield from count(text).isolate())  # type: ignore[misc]  # pyright: ignore[reportReturnType]


@do
def bare_yield() -> Steps[None, Never]:
    yield sleep("1s")  # type: ignore[misc]  # pyright: ignore[reportReturnType]


@do
def wrong_answer() -> Steps[str, Never]:
    return (yield from count("a"))  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


@workflow("typing.wrong_answer")
def wrong_answer_of_a_workflow(request: str) -> Steps[str, Never]:
    yield from count(request)
    return 1  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


@do
def no_answer(request: str) -> Steps[int, Never]:  # type: ignore[return]  # pyright: ignore[reportReturnType]
    yield from count(request)


@do
def wrong_use_of_an_answer(request: PageRequest) -> Steps[str, NotFound | Unavailable]:
    page = yield from fetch_page(request)
    return page.records  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


@workflow("typing.not_a_body")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def not_a_body(request: str) -> Flow[int, Never]:
    return count(request)


# Calls


def wrong_requests(request: PageRequest) -> None:
    fetch_page("people")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sync("people")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sync.child("people")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sync.start("people")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sync.key_of("people")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sync.existing([1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    fetch_page(request).map(len)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fetch_page(request).then(count)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fetch_page(request).then(lambda page: page.records)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
    fetch_page.using(crash="fail")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    undeclared_failure("people")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    count("a").timeout(5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


def wrong_child(child: Child[int, NotFound]) -> Flow[str, NotFound]:
    return child.join()  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def wrong_flow(flow: Flow[int, NotFound | Unavailable]) -> Flow[int, NotFound]:
    return flow  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


# Handlers


def of_not_found(error: NotFound) -> Flow[None, Never]:
    return pure(None)


def of_forbidden(error: Forbidden) -> Flow[None, Never]:
    return pure(None)


def of_a_number(number: int) -> Flow[None, Never]:
    return pure(None)


def of_another_exit(exit: Exit[str, NotFound]) -> Flow[None, Never]:
    return pure(None)


def not_all_left(flow: Flow[int, NotFound | Unavailable | Forbidden]) -> Flow[int | None, Unavailable]:
    return catching(NotFound, of_not_found)(flow)  # type: ignore[arg-type]  # pyright: ignore[reportReturnType]


def wrong_handlers(request: PageRequest) -> None:
    fetch_page(request).catch(of_not_found)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fetch_page(request).catch(lambda error: error)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
    catching(NotFound, of_forbidden)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    catching(NotFound, lambda error: count(error.status))  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    fetch_page(request).ensure(of_another_exit)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fetch_page(request).ensure(lambda exit: None)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
    fetch_page(request).compensate(of_a_number)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    fetch_page(request).compensate(lambda page: page.entity)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
    saga(fetch_page)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Results in hand


def case_left_out(outcome: Outcome[int, NotFound]) -> str:
    match outcome:
        case Success(number):
            return str(number)
        case _:
            assert_never(outcome)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def skipped_left_out(outcome: Outcome[int, NotFound] | Skipped) -> str:
    match outcome:
        case Success(number):
            return str(number)
        case Failure(error):
            return error.entity
        case _:
            assert_never(outcome)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def failure_left_out(outcome: Outcome[int, NotFound | Unavailable]) -> str:
    match outcome:
        case Success(number):
            return str(number)
        case Failure(error):
            match error:
                case NotFound(entity):
                    return entity
                case _:
                    assert_never(error)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def case_left_out_without_default(outcome: Outcome[int, NotFound]) -> str:  # type: ignore[return]  # pyright: ignore[reportReturnType]
    match outcome:  # pyright: ignore[reportMatchNotExhaustive]
        case Success(number):
            return str(number)


def exit_left_out(exit: Exit[int, NotFound]) -> str:
    match exit:
        case Success(number):
            return str(number)
        case Failure(error):
            return error.entity
        case _:
            assert_never(exit)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@do
def case_left_out_in_a_body(request: PageRequest) -> Steps[int, Never]:
    outcome = yield from fetch_page(request).attempt()
    match outcome:
        case Failure():
            return 0
        case _:
            assert_never(outcome)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def wrong_result() -> Outcome[int, NotFound]:
    return Failure(Forbidden("a"))  # type: ignore[arg-type]  # pyright: ignore[reportReturnType]


# Several


def wrong_items(names: list[str], request: PageRequest) -> None:
    each(names, fetch_page)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    each([1], lambda number: number)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType]
    each(request, fetch_page)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    all_(count("a"), fetch_page)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    race(count("a"), "1s")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    dag({"a": count("a")})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    node(count("a"), after=[1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


def wrong_tuple() -> Flow[tuple[int, str], Never]:
    return all_(count("a"), count("b"))  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def wrong_nodes(request: PageRequest) -> Nodes[object, NotFound]:
    return {"a": node(fetch_page(request))}  # type: ignore[arg-type]  # pyright: ignore[reportReturnType]


# Loops


@do
def wrong_round(state: int) -> Steps[Round[int, str], Never]:
    yield from sleep("1s")
    if state > 3:
        return Next("four")  # type: ignore[arg-type]  # pyright: ignore[reportReturnType]
    return Done(3)  # type: ignore[arg-type]  # pyright: ignore[reportReturnType]


def rounds(state: int) -> Flow[Round[int, str], Never]:
    return pure(Next(state))


def wrong_loops() -> None:
    iterate("a", rounds)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    iterate(0, count)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Signals


def wrong_signals() -> None:
    order.send("execution", 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    order.send("execution", NotFound("a"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    order.send(1, Page("a", 1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    order.receive(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def wrong_payload() -> Flow[Page, Never]:
    return order.receive()  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


def forgotten_none() -> Flow[Page | PageRequest, Never]:
    return order.take()  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


# Contracts and implementations


@activity("typing.not_a_result")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def not_a_result(request: str) -> int: ...


@activity("typing.two_inputs")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def two_inputs(first: str, second: str) -> Result[int, Never]: ...


async def wrong_input(request: str) -> Result[Page, NotFound | Unavailable]:
    return Failure(NotFound(request))


async def wrong_page(request: PageRequest) -> Result[int, NotFound | Unavailable]:
    return Success(1)


async def wrong_failure(request: PageRequest) -> Result[Page, Forbidden]:
    return Failure(Forbidden("a"))


async def one_failure_more(request: PageRequest) -> Result[Page, NotFound | Unavailable | Forbidden]:
    return Failure(Forbidden("a"))


async def no_result(request: PageRequest) -> Page:
    return Page("a", 1)


def wrong_input_in_a_thread(request: str) -> Result[Page, NotFound | Unavailable]:
    return Failure(NotFound(request))


def wrong_page_in_a_thread(request: PageRequest) -> Result[int, NotFound | Unavailable]:
    return Success(1)


def one_failure_more_in_a_thread(request: PageRequest) -> Result[Page, NotFound | Unavailable | Forbidden]:
    return Failure(Forbidden("a"))


def wrong_bindings() -> None:
    bind(fetch_page, wrong_input)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bind(fetch_page, wrong_page)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bind(fetch_page, wrong_failure)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bind(fetch_page, one_failure_more)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bind(fetch_page, no_result)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bind(fetch_page, wrong_input_in_a_thread)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bind(fetch_page, wrong_page_in_a_thread)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bind(fetch_page, one_failure_more_in_a_thread)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    bind(sync, wrong_page)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Policies


def wrong_policies() -> None:
    Retry.exponential(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Retry.constant("1s", on=(NotFound("a"),))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    activity("typing.crash", crash="again")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Concurrency("source", 4, each="user")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    activity("typing.budget", budget=("source",))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    workflow("typing.reuse", reuse="again")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    workflow("typing.key", key=lambda: "a")  # type: ignore[arg-type, misc]  # pyright: ignore[reportArgumentType]
    audit(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Schedules


def wrong_schedules() -> None:
    Schedule.cron("0 3 * * *", sync, "a", id="a")  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
    Schedule.every("15m", sync, Page("a", 1), id="a")  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
    Schedule.every("15m", fetch_page, PageRequest("a"), id="a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Schedule.every("15m", sync, PageRequest("a"))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Schedule.every(15, sync, PageRequest("a"), id="a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Schedule.every("15m", sync, PageRequest("a"), id="a", overlap="both")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Schedule.every("15m", sync, PageRequest("a"), id="a", catch_up="two")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
