"""Contracts, workflows, keys, policies and deployments: what is wrong is refused before anything runs, and the refusal says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from types import ModuleType
from typing import Any, Never
from urllib.parse import unquote
from uuid import UUID

import pytest
from attrs import evolve, frozen
from hypothesis import example, given
from hypothesis import strategies as st

from flowdsl import (
    Activity,
    Binding,
    Concurrency,
    Deployment,
    Flow,
    FlowError,
    Interrupted,
    RateLimit,
    Result,
    Retry,
    Steps,
    Success,
    TimedOut,
    Workflow,
    activity,
    all_,
    bind,
    dag,
    do,
    each,
    each_attempt,
    node,
    now,
    pure,
    race,
    signal,
    sleep,
    this_attempt,
    workflow,
)
from flowdsl.definition import Shape, filled
from flowdsl.errors import DefinitionError, DeploymentError, NotFound
from flowdsl.flow import Perform, Start
from flowdsl.policy import DEFAULT_RETRY, duration, shown


@frozen
class Order:
    org: str
    entity: str
    number: int = 0
    subject: str | None = None
    share: float = 0.5


@frozen
class Receipt:
    id: str


@frozen
class Unavailable:
    status: int


@frozen
class Missing:
    id: str


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@activity("test.charge")
def charge(order: Order) -> Result[Receipt, Unavailable | Missing]: ...


@activity("test.mail")
def mail(order: Order) -> Result[None, Never]: ...


@activity("test.count")
def count(text: str) -> Result[int, Never]: ...


@workflow("test.paid", key="{org}:{entity}")
def paid(order: Order) -> Steps[Receipt, Unavailable | Missing]:
    """Charges, then tells."""
    receipt = yield from charge(order)
    yield from mail(order)
    return receipt


def plain(request: Any) -> Any:
    return Success(None)


async def asynchronous(request: Any) -> Any:
    return Success(None)


def body(order: Order) -> Steps[None, Never]:
    yield from mail(order)


def refusal(attempt: Callable[[], object]) -> DefinitionError:
    with pytest.raises(DefinitionError) as caught:
        attempt()
    return caught.value


# Contracts


def test_a_contract_says_its_types_and_policies() -> None:
    quota, slots = RateLimit("source", 100, "1m"), Concurrency("source", 4)
    retry = Retry.exponential("1s", on=(Unavailable,))
    declare = activity("test.all", retry=retry, timeout="30s", schedule_to_close="1h", heartbeat="5s", budget=(quota, slots), transactional=True)

    def contract(order: Order) -> Result[Receipt, Unavailable | TimedOut]: ...

    made = declare(contract)
    assert made.shape == Shape(Order, Receipt, Unavailable | TimedOut)
    policies = made.policies
    assert (policies.retry, policies.start_to_close, policies.schedule_to_close) == (retry, timedelta(seconds=30), timedelta(hours=1))
    assert (policies.heartbeat, policies.budget, policies.crash, policies.transactional) == (timedelta(seconds=5), (quota, slots), "retry", True)


def test_a_contract_without_policies_has_the_defaults() -> None:
    policies = charge.policies
    assert (policies.retry, policies.start_to_close, policies.schedule_to_close) == (DEFAULT_RETRY, timedelta(minutes=5), None)
    assert (policies.heartbeat, policies.budget, policies.crash, policies.transactional) == (None, (), "retry", False)


def test_calling_a_contract_does_nothing_but_describe() -> None:
    flow = charge(Order("a", "b"))
    assert isinstance(flow, Perform)
    assert (flow.activity, flow.request) == (charge, Order("a", "b"))


def test_using_changes_this_call_only() -> None:
    before = charge.policies
    once = charge.using(timeout="1s", retry=Retry.constant("2s"))
    twice = once.using(heartbeat="3s", budget=(Concurrency("a", 1),))
    assert charge.policies == before
    assert once.policies == evolve(before, start_to_close=timedelta(seconds=1), retry=Retry.constant("2s"))
    assert twice.policies == evolve(once.policies, heartbeat=timedelta(seconds=3), budget=(Concurrency("a", 1),))
    assert twice.using(budget=()).policies.budget == ()
    assert charge.root is once.root is twice.root is charge
    assert (twice.name, twice.shape) == (charge.name, charge.shape)
    assert bind(twice, plain).activity is charge


def test_at_most_once_must_declare_the_interruption() -> None:
    def silent(order: Order) -> Result[Receipt, Unavailable]: ...

    def spoken(order: Order) -> Result[Receipt, Unavailable | Interrupted]: ...

    error = refusal(lambda: activity("test.once", crash="fail")(silent))
    assert 'crash="fail" without the failure Interrupted' in str(error)
    assert "Result[..., ... | Interrupted]" in error.remedy
    assert activity("test.once", crash="fail")(spoken).policies.crash == "fail"


@pytest.mark.parametrize("kind", [Missing, TimedOut, Interrupted, ValueError])
def test_a_retry_on_what_is_not_declared_is_refused(kind: type) -> None:
    def contract(order: Order) -> Result[Receipt, Unavailable]: ...

    error = refusal(lambda: activity("test.on", retry=Retry.constant("1s", on=(Unavailable, kind)))(contract))
    assert f"retry on {kind.__name__}, which it does not declare" in str(error)
    assert "Name a member of its failures" in error.remedy


def test_a_retry_on_what_is_declared_or_a_predicate_is_kept() -> None:
    def contract(order: Order) -> Result[Receipt, Unavailable | Missing | TimedOut]: ...

    for on in ((Unavailable, TimedOut), (), lambda failure: failure.status == 429):
        made = activity("test.on", retry=Retry.constant("1s", on=on))(contract)
        assert made.policies.retry.on == on


# What is refused on import, and what the refusal tells


def two_inputs(first: Order, second: Order) -> Any: ...
def no_input() -> Any: ...
def keyword_input(order: Order, *, loud: bool = False) -> Any: ...
def no_annotation(order): ...
def no_result(order: Order) -> Receipt: ...
def half_a_result(order: Order) -> Result: ...
def not_a_generator(order: Order) -> Steps[Receipt, Never]: ...
def no_steps(order: Order) -> Iterator[Receipt]:
    yield Receipt("a")


def two_orders(first: Order, second: Order) -> Steps[None, Never]:
    yield from mail(first)


def of_text(text: str) -> Steps[None, Never]:
    yield from count(text)


def define(function: Any, **options: Any) -> Callable[[], object]:
    return lambda: workflow("test.refused", **options)(function)


def declare(function: Any, **options: Any) -> Callable[[], object]:
    return lambda: activity("test.refused", **options)(function)


REFUSED = {
    # what: (how it is written, the problem, what to do)
    "activity without a name": (lambda: activity(""), "1 to 200 printable", "Write it as a literal"),
    "activity with a long name": (lambda: activity("a" * 201), "1 to 200 printable", "Write it as a literal"),
    "activity with an invisible name": (lambda: activity("a\nb"), "1 to 200 printable", "Write it as a literal"),
    "activity without its name": (lambda: activity(charge), "1 to 200 printable", "Write it as a literal"),
    "workflow without a name": (lambda: workflow(""), "1 to 200 printable", "Write it as a literal"),
    "workflow with an invisible name": (lambda: workflow("a\0b"), "1 to 200 printable", "Write it as a literal"),
    "signal without a name": (lambda: signal("", int), "a signal needs a name", "Give it a name such as"),
    "contract of two inputs": (declare(two_inputs), "exactly one annotated input", "one frozen attrs class"),
    "contract of no input": (declare(no_input), "exactly one annotated input", "one frozen attrs class"),
    "contract with an option": (declare(keyword_input), "exactly one annotated input", "one frozen attrs class"),
    "contract without annotations": (declare(no_annotation), "exactly one annotated input", "one frozen attrs class"),
    "contract without a result": (declare(no_result), "its return annotation is", "Annotate it as Result[Answer, Failures]"),
    "contract with half a result": (declare(half_a_result), "its return annotation is", "Annotate it as Result[Answer, Failures]"),
    "time-out that is none": (declare(mail.contract, timeout="soon"), "'soon' is not a duration", '"1h30m"'),
    "heartbeat that is none": (declare(mail.contract, heartbeat="-1s"), "'-1s' is not a duration", "Write a timedelta"),
    "body that is no generator": (define(not_a_generator), "not a generator function", "with `yield from`"),
    "body without steps": (define(no_steps), "its return annotation is", "Annotate it as Steps[Answer, Failures]"),
    "body of two inputs": (define(two_orders), "exactly one annotated input", "one frozen attrs class"),
    "key as a lambda": (define(body, key=lambda order: order.org), "its key is a lambda", "Use a template or a named function"),
    "key over an unknown field": (define(body, key="{org}:{town}"), "{town}", "Its fields are: entity, number, org, share, subject"),
    "key over a field of a field": (define(body, key="{org.name}"), "{org.name}", "Its fields are: entity"),
    "key over a position": (define(body, key="{}"), "{}", "Its fields are: entity"),
    "key with a format": (define(body, key="{number:03}"), "{number}", "Its fields are: entity"),
    "key with a conversion": (define(body, key="{org!r}"), "{org}", "Its fields are: entity"),
    "key over a text": (define(of_text, key="{text}"), "{text}", "Only an attrs class has fields; use a named function"),
    "key that is no template": (define(body, key="{org"), "'{org' is no template", "Write {field}"),
    "key without a separator": (define(body, key="{org}{entity}"), "nothing separates {entity}", "Write {a}:{b}"),
    "key with a letter between": (define(body, key="{org}x{entity}"), "nothing separates {entity}", "Write {a}:{b}"),
    "key with an escape between": (define(body, key="{org}%{entity}"), "nothing separates {entity}", "Write {a}:{b}"),
    "unknown reuse": (lambda: workflow("a", reuse="again"), "reuse='again'", "join, after_close, after_failure, reject"),
    "no attempt at all": (lambda: Retry.constant("1s", attempts=0), "attempts=0", "at least one attempt"),
    "negative jitter": (lambda: Retry.linear("1s", jitter=-0.1), "jitter=-0.1", "from 0 to 1"),
    "much jitter": (lambda: Retry.exponential("1s", jitter=1.1), "jitter=1.1", "from 0 to 1"),
    "negative wait": (lambda: Retry.exponential(timedelta(seconds=-1)), "is negative", "zero or more"),
    "limit per nothing known": (lambda: RateLimit("a", 1, "minute"), "'minute' is not a duration", "Write a timedelta"),
    "wait until when, nobody knows": (lambda: sleep(datetime(2026, 1, 1)), "no time zone", "aware datetime"),
    "time-out nobody knows when": (lambda: now().timeout(datetime(2026, 1, 1)), "no time zone", "aware datetime"),
    "race of nothing": (lambda: race(), "never ends", "at least one flow"),
    "each, none at a time": (lambda: each([1], pure, concurrency=0), "0 at a time is none", "Give 1 or more"),
    "each_attempt, none at a time": (lambda: each_attempt([1], pure, concurrency=-1), "-1 at a time is none", "Give 1 or more"),
    "dag after nobody": (lambda: dag({"a": node(now(), after=["b"])}), "'a' comes after 'b', which is no node", "The nodes are: a"),
    "dag in a circle": (
        lambda: dag({"a": node(now(), after=["b"]), "b": node(now(), soft=["a"])}),
        "a cycle: ",
        "Make one of these edges a later step",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_work_is_refused_and_told_what_to_do(what: str) -> None:
    attempt, problem, remedy = REFUSED[what]
    error = refusal(attempt)
    assert problem in error.problem
    assert remedy in error.remedy
    assert str(error) == f"{error.name}: {error.problem}. {error.remedy}"
    assert isinstance(error, FlowError)


def test_a_refusal_names_what_it_refuses() -> None:
    assert refusal(define(body, key="{town}")).name == "test.refused"
    assert refusal(declare(two_inputs)).name == "test.refused"
    assert "''" in refusal(lambda: workflow("")).name


# Workflows


def test_a_workflow_keeps_what_its_body_says_of_itself() -> None:
    assert (paid.__doc__, paid.__name__, paid.__module__) == ("Charges, then tells.", "paid", __name__)
    assert (paid.name, paid.reuse, paid.version) == ("test.paid", "join", 1)
    assert paid.shape == Shape(Order, Receipt, Unavailable | Missing)


def test_a_key_is_the_one_given_or_that_of_the_input() -> None:
    def key(flow: Flow[Any, Any]) -> str | None:
        assert isinstance(flow, Start)
        return flow.key

    order = Order("a", "b")
    keyless = workflow("test.keyless")(body)
    assert key(paid.start(order)) == paid.key_of(order) == "a:b"
    assert key(paid.start(order, key="mine")) == "mine"
    assert key(keyless.start(order)) is None
    assert key(keyless.start(order, key="mine")) == "mine"
    error = refusal(lambda: keyless.key_of(order))
    assert (error.problem, error.remedy) == ("it has no key", 'Give it one: @workflow(name, key="{field}")')


def test_a_named_function_may_be_the_key() -> None:
    def by_share(order: Order) -> str:
        return f"share of {order.share}"

    assert workflow("test.keyed", key=by_share)(body).key_of(Order("a", "b")) == "share of 0.5"


@pytest.mark.parametrize("key", ["", "a\0b", "a" * 1001])
def test_what_cannot_be_a_key_is_refused_at_the_start(key: str) -> None:
    def given_key(order: Order) -> str:
        return key

    error = refusal(lambda: workflow("test.keyed", key=given_key)(body).start(Order("a", "b")))
    assert error.name == "test.keyed"
    assert "1 to 1000 characters without NUL" in error.remedy


# Key templates


@frozen
class Fields:
    value: object


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("people", "people"),
        ("a:b", "a%3Ab"),
        ("100%", "100%25"),
        ("ä/ö", "ä/ö"),
        ("", "%"),
        (None, ""),
        (7, "7"),
        (True, "True"),
        (Color.RED, "red"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (date(2026, 1, 31), "2026-01-31"),
        (datetime(2026, 1, 31, 9, 30, tzinfo=UTC), "2026-01-31T09%3A30%3A00+00%3A00"),
        (timedelta(hours=1), "1%3A00%3A00"),
    ],
)
def test_a_field_has_one_spelling(value: object, text: str) -> None:
    assert filled("for:{value}", Fields(value)) == f"for:{text}"


@pytest.mark.parametrize("value", [0.5, (1, 2), b"a", Receipt("a")])
def test_a_field_without_one_spelling_is_refused(value: object) -> None:
    error = refusal(lambda: filled("{value}", Fields(value)))
    assert (error.name, error.remedy) == ("key field value", "Use a named function as key")
    assert type(value).__name__ in error.problem


def test_only_what_separates_is_escaped() -> None:
    assert filled("{value}", Fields("https://bucket/a-b:c")) == "https://bucket/a-b:c"
    assert filled("{{{value}}}", Fields("{a}")) == "{%7Ba%7D}"
    assert filled("a—{value}", Fields("b—c")) == "a—b%E2%80%94c"


@frozen
class Three:
    first: str | None
    second: str | None
    third: str | None


def of_three(three: Three) -> Steps[None, Never]:
    yield from count("a")


def is_a_key(template: str) -> bool:
    try:
        workflow("test.three", key=template)(of_three)
    except DefinitionError as error:
        assert "nothing separates" in error.problem
        return False
    return True


LITERALS = st.text("ab1%:-/ —é{", max_size=3).map(lambda text: text.replace("{", "{{"))
TEMPLATES = st.tuples(LITERALS, LITERALS, LITERALS, LITERALS).map(lambda some: f"{some[0]}{{first}}{some[1]}{{second}}{some[2]}{{third}}{some[3]}")
TEXTS = st.none() | st.text("ab1%:-/ —é{2345678ABCDEF😀", max_size=5) | st.text(st.characters(codec="utf-8"), max_size=5)
THREES = st.builds(Three, TEXTS, TEXTS, TEXTS)


@given(TEMPLATES, THREES, THREES)
@example("{first}:{second}:{third}", Three("a:b", "", "c"), Three("a", "b:", "c"))
@example("{first}-{second}-{third}", Three(None, "", ""), Three("", None, ""))
@example("{first}%:{second}:{third}", Three("a%", "25", ""), Three("a", "%25", ""))
@example("—{first} {second}:{third}", Three("—", "", ""), Three(" 14", "", ""))
@example("{first}x{second}:{third}", Three("1x2", "3", ""), Three("1", "2x3", ""))
@example("{first}{second}:{third}", Three("ab", "c", ""), Three("a", "bc", ""))
@example("{first}:{second}%{third}", Three("", "a", "25%b"), Three("", "a%", "25b"))
def test_no_two_inputs_meet_in_a_key(template: str, one: Three, other: Three) -> None:
    if is_a_key(template):
        assert (filled(template, one) == filled(template, other)) == (one == other)


@given(TEXTS, TEXTS, TEXTS)
def test_the_fields_of_a_key_can_be_read_back(first: str | None, second: str | None, third: str | None) -> None:
    def read(text: str) -> str | None:
        return None if text == "" else "" if text == "%" else unquote(text)

    key = filled("of {first}:{second}/{third}", Three(first, second, third))
    found = re.fullmatch(r"of ([^ :/]*):([^ :/]*)/([^ :/]*)", key)
    assert found
    assert tuple(map(read, found.groups())) == (first, second, third)


# Durations


@pytest.mark.shows("S2.35")
@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("500ms", timedelta(milliseconds=500)),
        ("60s", timedelta(seconds=60)),
        ("30m", timedelta(minutes=30)),
        ("24h", timedelta(hours=24)),
        ("7d", timedelta(days=7)),
        ("1h30m", timedelta(minutes=90)),
        ("1d 12h 5s", timedelta(days=1, hours=12, seconds=5)),
        ("1.5h", timedelta(minutes=90)),
        ("0s", timedelta()),
        (timedelta(microseconds=3), timedelta(microseconds=3)),
    ],
)
def test_a_duration_is_what_a_person_writes(text: str | timedelta, span: timedelta) -> None:
    assert duration(text) == span


@pytest.mark.parametrize("value", ["", "5", "h", "5 weeks", "-5s", "1e5s", "5s!", "1h30", "soon", 5, 1.5, None, True, float("nan")])
def test_what_is_no_duration_is_refused(value: Any) -> None:
    error = refusal(lambda: duration(value))
    assert error.problem == f"{value!r} is not a duration"
    assert '"500ms", "60s", "30m", "24h", "1h30m"' in error.remedy


@pytest.mark.parametrize("value", ["1000000000d", "9" * 30 + "h", "999999999d24h", "9" * 400 + "s"])
def test_a_duration_that_no_clock_reaches_is_refused(value: str) -> None:
    assert "too long" in refusal(lambda: duration(value)).problem


@given(st.timedeltas(min_value=timedelta()).map(lambda span: span // timedelta(milliseconds=1) * timedelta(milliseconds=1)))
@example(timedelta())
@example(timedelta.max // timedelta(milliseconds=1) * timedelta(milliseconds=1))
def test_a_shown_duration_reads_back(span: timedelta) -> None:
    assert duration(shown(span)) == span


def test_durations_are_shown_as_a_person_writes_them() -> None:
    spans = ["0s", "250ms", "1s", "1m30s", "1h30m", "1d"]
    assert [shown(duration(span)) for span in spans] == spans
    assert [shown(duration(span)) for span in ("60s", "24h", "90m")] == ["1m", "1d", "1h30m"]


# Retries


def waits(retry: Retry, tries: int = 4) -> list[float]:
    return [retry.delay(attempt, 0.0).total_seconds() for attempt in range(1, tries + 1)]


@pytest.mark.parametrize(
    ("retry", "seconds"),
    [
        (Retry.exponential("1s"), [1, 2, 4, 8]),
        (Retry.exponential("500ms"), [0.5, 1, 2, 4]),
        (Retry.exponential("1s", maximum="5s"), [1, 2, 4, 5]),
        (Retry.exponential("10s", maximum="1s"), [1, 1, 1, 1]),
        (Retry.linear("1s"), [1, 2, 3, 4]),
        (Retry.linear("1s", maximum="3s"), [1, 2, 3, 3]),
        (Retry.constant("1s"), [1, 1, 1, 1]),
        (Retry.constant("500d"), [500 * 86_400] * 4),
        (Retry.exponential("0s"), [0, 0, 0, 0]),
        (DEFAULT_RETRY, [1, 2, 4, 8]),
    ],
    ids=str,
)
def test_the_waits_between_tries(retry: Retry, seconds: list[float]) -> None:
    assert waits(retry) == seconds


def test_jitter_lengthens_a_wait_by_at_most_its_share() -> None:
    retry = Retry.constant("10s", jitter=0.5)
    assert [retry.delay(1, chance) for chance in (0.0, 0.5, 1.0)] == [timedelta(seconds=span) for span in (10, 12.5, 15)]


SPANS = st.timedeltas(min_value=timedelta())


@given(
    st.sampled_from([Retry.exponential, Retry.linear, Retry.constant]),
    SPANS,
    st.none() | SPANS,
    st.floats(0, 1),
    st.integers(1) | st.just(10**400),
    st.floats(0, 1, exclude_max=True),
)
@example(Retry.exponential, timedelta.max, timedelta.max, 1.0, 10**400, 0.99)
@example(Retry.linear, timedelta.max, None, 1.0, 10**400, 0.99)
@example(Retry.exponential, timedelta(seconds=1), None, 0.0, 10**6, 0.0)
def test_no_wait_overflows_or_shrinks(
    make: Callable[..., Retry], initial: timedelta, maximum: timedelta | None, jitter: float, attempt: int, chance: float
) -> None:
    retry = make(initial, maximum=maximum, jitter=jitter)
    assert timedelta() <= retry.delay(attempt, chance) <= retry.delay(attempt + 1, chance)
    if maximum is not None:
        assert retry.delay(attempt, 0.0).total_seconds() <= maximum.total_seconds() * (1 + 1e-15)  # a float's last digit


def test_which_failures_a_retry_picks() -> None:
    by_type, by_status = Retry.constant("1s", on=(Unavailable,)), Retry.constant("1s", on=lambda failure: failure.status == 429)
    assert [by_type.picks(failure) for failure in (Unavailable(503), Missing("a"))] == [True, False]
    assert [by_status.picks(failure) for failure in (Unavailable(503), Unavailable(429))] == [False, True]
    assert not Retry.constant("1s").picks(Unavailable(503))


def test_when_the_tries_are_exhausted() -> None:
    assert [Retry.constant("1s", attempts=2).exhausted(tries) for tries in (1, 2, 3)] == [False, True, True]
    assert not Retry.constant("1s").exhausted(10**9)


# Bindings


class Client:
    async def charge(self, request: Order) -> Any:
        return Success(Receipt("a"))

    async def __call__(self, request: Order) -> Any:
        return Success(Receipt("a"))


@pytest.mark.parametrize(
    ("implementation", "is_async"),
    [(asynchronous, True), (plain, False), (Client().charge, True), (Client(), True), (lambda _: Success(None), False)],
)
def test_a_binding_knows_whether_to_await(implementation: Any, is_async: bool) -> None:
    binding = bind(charge, implementation)
    assert (binding.activity, binding.implementation, binding.is_async) == (charge, implementation, is_async)


def test_outside_an_implementation_there_is_no_attempt() -> None:
    with pytest.raises(FlowError, match="for implementations while an interpreter runs them"):
        this_attempt()


# Deployments


@do
def told(order: Order) -> Steps[None, Never]:
    yield from mail(order)


def counted(order: Order) -> Flow[int, Never]:
    return count(order.org)


@workflow("test.child")
def child(order: Order) -> Steps[int, Never]:
    return (yield from counted(order))


@workflow("test.parent")
def parent(order: Order) -> Steps[None, Unavailable | Missing]:
    @do
    def part() -> Steps[None, Unavailable | Missing]:
        yield from all_(paid.child(order), each([order], lambda one: child.start(one)))

    yield from part()
    yield from told(order)


@workflow("test.itself")
def itself(order: Order) -> Steps[None, Never]:
    if order.number:
        yield from itself.child(evolve(order, number=order.number - 1))
    yield from mail(order)


once = charge.using(timeout="1s")


@workflow("test.other_policies")
def other_policies(order: Order) -> Steps[Receipt, Unavailable | Missing]:
    return (yield from once(order))


elsewhere, deeper = ModuleType("elsewhere"), ModuleType("elsewhere.deeper")
elsewhere.deeper, elsewhere.mail, deeper.child = deeper, mail, child


@workflow("test.through_a_module")
def through_a_module(order: Order) -> Steps[None, Never]:
    yield from elsewhere.mail(order)
    yield from elsewhere.deeper.child(order)


@workflow("test.attributes")
def attributes(order: Order) -> Steps[None, Never]:
    """`count` and `child` are attributes here, not the names above."""
    yield from mail(order)
    assert order.entity.count("a") or order.child or order.elsewhere.mail


def test_an_attribute_is_not_a_name() -> None:
    assert Deployment(workflows=[attributes], bindings=[bind(mail, plain)]).names == ("test.attributes",)


def everything() -> list[Binding]:
    return [bind(charge, plain), bind(mail, asynchronous), bind(count, plain)]


def problems(*workflows: Workflow[Any, Any, Any], bindings: Sequence[Binding] = ()) -> tuple[str, ...]:
    with pytest.raises(DeploymentError) as caught:
        Deployment(workflows=workflows, bindings=bindings)
    message = str(caught.value)
    assert all(f"\n  - {problem}" in message for problem in caught.value.problems)
    return caught.value.problems


def test_a_deployment_finds_the_children() -> None:
    deployment = Deployment(workflows=[parent], bindings=everything())
    assert set(deployment.names) == {"test.parent", "test.paid", "test.child"}
    assert deployment.workflow("test.child") is child
    assert deployment.binding("test.charge").activity is charge
    assert set(Deployment(workflows=[through_a_module], bindings=everything()).names) == {"test.through_a_module", "test.child"}


def test_a_workflow_may_name_itself_and_be_named_twice() -> None:
    assert Deployment(workflows=[itself, itself], bindings=everything()).names == ("test.itself",)
    assert set(Deployment(workflows=[paid, parent, paid], bindings=everything()).names) == {"test.parent", "test.paid", "test.child"}


def test_a_deployment_knows_only_its_own() -> None:
    deployment = Deployment(workflows=[paid], bindings=everything())
    with pytest.raises(NotFound, match=r"no workflow named 'test\.parent'\. Known: test\.paid\."):
        deployment.workflow("test.parent")
    with pytest.raises(NotFound, match=r"no bound activity named 'a'\. Known: test\.charge, test\.count, test\.mail\."):
        deployment.binding("a")


@pytest.mark.parametrize(
    ("named", "missing"),
    [
        (paid, {charge, mail}),
        (parent, {charge, mail, count}),
        (child, {count}),
        (itself, {mail}),
        (other_policies, {charge}),
        (through_a_module, {mail, count}),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_contract_without_an_implementation_is_missed(named: Workflow[Any, Any, Any], missing: set[Activity[Any, Any, Any]]) -> None:
    assert set(problems(named)) == {f"activity {one.name} has no implementation: add bind(…, …)" for one in missing}
    for one in missing:
        others = [binding for binding in everything() if binding.activity is not one]
        assert problems(named, bindings=others) == (f"activity {one.name} has no implementation: add bind(…, …)",)


@activity("test.mail")
def second_mail(order: Order) -> Result[None, Never]: ...


@workflow("test.paid")
def second_paid(order: Order) -> Steps[None, Never]:
    yield from second_mail(order)


@workflow("test.two_mails")
def two_mails(order: Order) -> Steps[None, Never]:
    yield from mail(order)
    yield from second_mail(order)


def test_a_name_belongs_to_one() -> None:
    twice = "activity test.mail is bound twice: keep one bind(...)"
    mails = "two contracts are named test.mail: rename one"
    paids = "two workflows are named test.paid: rename one, or give it another version"
    assert problems(itself, bindings=[*everything(), bind(mail, plain)]) == (twice,)
    assert problems(two_mails, bindings=everything()) == (mails,)
    assert problems(itself, bindings=[bind(second_mail, plain)]) == (mails,)
    assert problems(paid, second_paid, bindings=everything()) == (paids,)


@activity("test.later", crash="fail")
def later(order: Order) -> Result[Receipt, Later]: ...


@workflow("test.later", key="{town}")
def of_later(request: Later) -> Steps[Receipt, Later]:
    return (yield from later(Order("a", request.id)))


@frozen
class Later:
    """Below what names it: so the checks on import could not be made."""

    id: str


@workflow("test.never")
def of_never(request: Nowhere) -> Steps[None, Never]:  # noqa: F821
    yield from now()


def test_all_problems_are_named_at_once() -> None:
    found = problems(paid, second_paid, of_later, of_never, bindings=[bind(count, plain), bind(count, plain)])
    assert [problem.partition(": ")[0] for problem in found] == [
        "activity test.count is bound twice",
        "two workflows are named test.paid",
        "activity test.charge has no implementation",
        "activity test.mail has no implementation",
        "activity test.later has no implementation",
        "test.later",
        "test.never",
        "test.later",
    ]
    for word in ("{town}, which is no field of the input. Its fields are: id", 'crash="fail" without the failure Interrupted'):
        assert sum(word in problem for problem in found) == 1
    assert "test.never: name 'Nowhere' is not defined" in found[-2]


def test_several_versions_of_one_workflow() -> None:
    """New executions take the newest, wherever it stands in the list."""

    @workflow("v.one", version=2)
    def second(n: int) -> Steps[int, Never]:
        return (yield from pure(n + 2))

    @workflow("v.one")
    def first(n: int) -> Steps[int, Never]:
        return (yield from pure(n + 1))

    for both in ([first, second], [second, first]):
        deployment = Deployment(both)
        assert deployment.workflow("v.one") is second and deployment.workflow("v.one", 1) is first
        assert set(deployment.versions) == {("v.one", 1), ("v.one", 2)} and deployment.names == ("v.one",)
        assert deployment.definitions("v.one", 1)("v.one") is first
        with pytest.raises(NotFound, match=r"no version of v\.one named '3'\. Known: 1, 2"):
            deployment.workflow("v.one", 3)
