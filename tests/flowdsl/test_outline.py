"""Outlines: drawn from the source alone, and lit up by what runs have recorded."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any, Never

import pytest
from attrs import frozen

from flowdsl import (
    Child,
    Deployment,
    Done,
    Failure,
    Flow,
    Next,
    Result,
    Retry,
    Round,
    Steps,
    Success,
    Workflow,
    activity,
    all_,
    audit,
    bind,
    catching,
    changed,
    dag,
    do,
    each,
    each_attempt,
    fail,
    iterate,
    masked,
    node,
    now,
    pure,
    race,
    report,
    saga,
    signal,
    sleep,
    workflow,
)
from flowdsl.errors import DefinitionError
from flowdsl.memory import Memory, Run
from flowdsl.outline import Item, Outline, outline
from flowdsl.outline.mermaid import mermaid, quoted
from flowdsl.outline.svg import anchor, svg
from tests.typing import passages_enrichment, passages_erasure, passages_imports, passages_platform, passages_sync

HERE = Path(__file__).name


@frozen
class Bad:
    why: str


@activity("o.one")
def one(number: int) -> Result[int, Bad]: ...


@activity("o.two", retry=Retry.constant("1s", attempts=3, on=(Bad,)), timeout="30s", transactional=True)
def two(number: int) -> Result[int, Bad]: ...


@activity("o.undo")
def undo(number: int) -> Result[None, Never]: ...


news = signal("o.news", int)


def answers(failing: bool = False) -> dict[Any, Any]:
    return {
        one: lambda number: Failure(Bad("asked to")) if failing or number < 0 else Success(number),
        two: lambda number: Failure(Bad("asked to")) if number < 0 else Success(number),
        undo: lambda number: Success(None),
    }


def bound(*workflows: Workflow[Any, Any, Any]) -> Deployment:
    def nothing(request: Any) -> Any:
        raise AssertionError("scripted")

    return Deployment(workflows=workflows, bindings=[bind(one, nothing), bind(two, nothing), bind(undo, nothing)])


def ran(flow: Workflow[Any, Any, Any], request: Any = 1) -> Run:
    return Memory(bound(flow), answers()).run(flow, request)


def told(item: Item, depth: int = -1) -> Iterator[str]:
    """An outline as indented text."""
    facts = " ".join(f"[{name}: {value}]" for name, value in item.facts.items())
    when = f"({item.when}) " if item.when else ""
    line = f"{when}{item.kind} {item.label} {facts}".strip()
    if depth >= 0 and item.kind != "sequence":
        yield "  " * depth + line
    elif depth >= 0 and (item.when or item.parts):
        yield "  " * depth + (f"({item.when})" if item.when else "in order")
    for part in item.parts:
        yield from told(part, depth + 1)


def text(flow: Workflow[Any, Any, Any]) -> str:
    return "\n".join(told(outline(flow).root))


def sites(flow: Workflow[Any, Any, Any]) -> set[str]:
    return set(outline(flow).sites)


# Golden texts


GOLDEN = {
    passages_sync.entity_sync: """
        activity sync.get_sync_parameters
        iterate iterate from Walk()
          part one_page
            activity sync.process_entity_page
            choice not page.has_more?
              (yes)
                return return
              (no)
            sleep sleep page.pause
        now now
        activity sync.update_sync_status
    """,
    passages_enrichment.enrich_batch: """
        activity enrichment.claim_batch
        choice not batch.jobs?
          (yes)
            return return
          (no)
        ensure ensure
          part pursue
            activity enrichment.submit
            now now
            loop again and again
              timeout timeout deadline
                race race: the first of
                  receive receive enrichment-complete [key: batch.id]
                  part polled
                    loop again and again
                      sleep sleep 15m
                      attempt attempt
                        activity enrichment.fetch_results
                      choice match fetch_results(batch).attempt()
                        (Success(seen) if seen.final)
                          return return
                        (_)
              activity enrichment.write_results
              choice news.final?
                (yes)
                  return return
                (no)
          (always, at the end) activity enrichment.close_batch
    """,
    passages_erasure.erasure: """
        activity erasure.verify_identity
        execution execution
        part cleared
          loop again and again
            choice case.held?
              (yes)
                timeout timeout case.due
                  receive receive erasure-override
              (no)
                take take erasure-override
            choice order is None?
              (yes)
                return return
              (no)
            part applied
              audit audit ERASURE_OVERRIDE
              choice isinstance(order, Withdraw)?
                (yes)
                  fail fail Withdrawn(order.approver)
                (no)
        activity erasure.delete_from_stripe
        again cleared
        activity erasure.delete_from_database
        activity erasure.validate_checkpoint
        start start erasure.parallel_deletions
        audit audit PARALLEL_DELETIONS_CHILD_WORKFLOW_SPAWNED
        part attended
          loop again and again
            timeout timeout case.due
              race race: the first of
                attempt attempt
                  isolate isolate
                    join join erasure.parallel_deletions
                receive receive erasure-override
            choice isinstance(news, (Success, Failure))?
              (yes)
                return return
              (no)
            again applied
        start start erasure.background_scans [detached: yes]
        activity erasure.certify
    """,
    passages_imports.process_meal_shorts_csv: """
        iterate iterate from Position()
          part one_chunk
            activity imports.read_rows
            existing existing imports.meal_short
            each each of new [at a time: 64]
              attempt attempt
                isolate isolate
                  child imports.meal_short
            activity imports.append_errors
    """,
    passages_imports.process_meal_short: """
        dag graph [at a time: 8]
          (validate_order) node validate_order
            activity imports.validate_order
          (process_meal_short) node process_meal_short [after: validate_order]
            activity imports.process
          (send_confirmation) node send_confirmation [after: process_meal_short]
            activity imports.send_confirmation
    """,
    passages_platform.onboarding: """
        uuid uuid
        compensate compensate
          pure pure account_id
          (undo) activity platform.delete_account
        activity platform.create_account
        compensate compensate
          activity platform.add_member
          (undo) activity platform.remove_member
        choice order.setup_default_workspace?
          (yes)
            compensate compensate
              activity platform.create_workspace
              (undo) activity platform.delete_workspace
          (no)
        choice order.send_welcome_email?
          (yes)
            attempt attempt
              activity platform.send_welcome [retry: constant 5s, 2 attempts]
          (no)
    """,
    passages_platform.migration: """
        attempt attempt
          saga saga
            each each of order.services [at a time: 4]
              compensate compensate
                activity platform.migrate_service
                (undo) activity platform.roll_back_service
    """,
}


@pytest.mark.parametrize("flow", GOLDEN, ids=lambda flow: flow.name)
def test_a_passage_is_drawn_as_it_is_written(flow: Workflow[Any, Any, Any]) -> None:
    assert text(flow) == dedent(GOLDEN[flow]).strip()


def test_the_policies_of_an_activity_stand_on_it() -> None:
    @workflow("o.policies")
    def policies(n: int) -> Steps[int, Bad]:
        yield from one(n)
        return (yield from two.using(timeout="5s")(n))

    first, second = outline(policies).root.parts
    assert (first.label, dict(first.facts)) == ("o.one", {})
    assert dict(second.facts) == {"retry": "constant 1s, 3 attempts", "timeout": "5s", "transactional": "yes"}


# Sites are those of a run


@workflow("o.child", key="{number}")
def child_flow(order: Number) -> Steps[int, Bad]:
    return (yield from one(order.number))


@frozen
class Number:
    number: int


@do
def part(n: int) -> Steps[int, Bad]:
    yield from sleep("1s")
    return (yield from one(n))


def plain(n: int) -> Iterator[Any]:
    yield from one(n)
    return (yield from two(n))


def made(n: int) -> Flow[int, Bad]:
    return one(n).then(lambda answer: two(answer))


@workflow("o.inner")
def inner(n: int) -> Steps[int, Bad]:
    return (yield from two(n))


@workflow("o.everything")
def everything(n: int) -> Steps[int, Bad]:
    at = yield from now()
    yield from report("begins")
    yield from one(n)
    first, second = yield from all_(one(n), two(n))
    yield from race(sleep("1s"), news.receive().then(lambda _: sleep("2h")))
    yield from each([1, 2], lambda i: one(i).map(str))
    yield from each_attempt(
        [1, -2],
        lambda i: one(i),
        concurrency=2,
    )
    yield from dag({"a": node(one(1)), "b": node(part(2), after=["a"])})
    yield from part(n)
    yield from inner(n)
    yield from plain(n)
    yield from made(n)
    yield from one(-1).catch(lambda bad: two(1))
    yield from catching(Bad, lambda bad: pure(1))(one(-1))
    yield from masked(one(n)).isolate()
    yield from one(n).ensure(lambda exit: undo(n))
    yield from saga(one(n).compensate(undo).then(lambda _: one(-5))).attempt()
    yield from news.receive().timeout("5s").attempt()
    yield from one(-3).retry(Retry.constant("1s", attempts=2)).attempt()
    running = yield from child_flow.start(Number(4))
    yield from running.join()
    yield from child_flow.child(Number(5)).attempt()
    yield from child_flow.existing(["5"])
    yield from news.take()
    yield from news.send("somebody", 5)
    yield from audit("DONE", n)
    if (yield from changed("new")):
        yield from two((yield from one(n)))

    @do
    def turn(left: int) -> Steps[Round[int, int], Bad]:
        yield from one(left)
        return Next(left - 1) if left else Done(0)

    def step(base: int, left: int) -> Flow[Round[int, int], Bad]:
        return one(left + base).map(lambda _: Done(0))

    yield from iterate(2, turn)
    yield from iterate(2, partial(step, 1))
    for i in range(2):
        (yield from one(i)) if i else (yield from two(i))
    while n > 0:
        n -= yield from one(1)
    return first + second + at.year


def test_each_entry_of_a_run_lies_on_the_outline() -> None:
    run = ran(everything)
    assert isinstance(run.exit, Success), run.exit
    drawn = outline(everything)
    asked = {(item.site, ask) for _, item in drawn.walk() for ask in item.asks}
    for entry in run.journal:
        assert any(site == entry.site and entry.fingerprint.startswith(ask) for site, ask in asked), (entry.site, entry.fingerprint)


def test_a_run_that_goes_everywhere_reaches_every_site() -> None:
    lit = outline(everything).lit(ran(everything).journal)
    assert lit.missing == ()
    assert str(lit) == f"{len(lit.sites)} of {len(lit.sites)} sites reached"
    assert len(lit.sites) > 30


def test_undos_of_the_workflow_itself_have_no_site_and_are_lit_all_the_same() -> None:
    @workflow("o.saga")
    def undone(n: int) -> Steps[int, Bad]:
        yield from one(n).compensate(undo)
        return (yield from two(-1))

    run = ran(undone)
    assert run.exit == Failure(Bad("asked to"))
    assert run.journal[-1].site == ""
    drawn = outline(undone)
    undoing = next(path for path, item in drawn.walk() if item.when == "undo")
    assert undoing in drawn.lit(run.journal).items
    assert undoing not in drawn.lit(run.journal[:-1]).items


def test_what_a_run_did_not_reach_stays_dark() -> None:
    @workflow("o.branches")
    def branches(n: int) -> Steps[int, Bad]:
        if n > 5:
            yield from one(n)
        else:
            yield from two(n)
        yield from race(one(n), sleep("1h"))
        return n

    drawn = outline(branches)
    lit = drawn.lit(ran(branches).journal)
    line = branches.body.__code__.co_firstlineno
    assert lit.missing == (f"branches {HERE}:{line + 3}",)
    assert str(lit) == "2 of 3 sites reached"
    kinds = sorted(item.kind for path, item in drawn.walk() if path in lit.items)
    assert kinds == ["activity", "activity"]  # of the race, the branch that won
    assert 'class="work lit"' in drawn.to_svg(lit)
    assert 'class="work lit"' not in drawn.to_svg()
    assert drawn.to_mermaid(lit).count(" lit\n") == 2


# What is followed


def test_of_two_sleeps_on_one_line_the_one_that_was_slept_is_lit() -> None:
    @workflow("o.sleeps")
    def sleeps(n: int) -> Steps[None, Never]:
        yield from race(sleep("1s"), sleep("1h"), sleep("10m").timeout("2h").attempt())

    drawn = outline(sleeps)
    lit = drawn.lit(ran(sleeps).journal)
    assert [item.label for path, item in drawn.walk() if path in lit.items] == ["sleep 1s"]


def test_a_part_is_drawn_once_and_named_afterwards() -> None:
    @workflow("o.twice")
    def twice(n: int) -> Steps[int, Bad]:
        yield from part(n)
        return (yield from part(n + 1))

    assert text(twice).splitlines() == ["part part", "  sleep sleep 1s", "  activity o.one", "again part"]


def test_a_part_given_other_flows_is_drawn_anew() -> None:
    @do
    def politely(flow: Flow[int, Bad]) -> Steps[int, Bad]:
        yield from sleep("1s")
        return (yield from flow)

    @workflow("o.given")
    def given(n: int) -> Steps[int, Bad]:
        yield from politely(one(n))
        return (yield from politely(two(n)))

    assert [line.split(" [")[0] for line in text(given).splitlines()] == [
        "part politely", "  sleep sleep 1s", "  activity o.one",
        "part politely", "  sleep sleep 1s", "  activity o.two",
    ]  # fmt: skip


@do
def deeper(n: int) -> Steps[int, Bad]:
    yield from one(n)
    return (yield from deeper(n - 1)) if n else 0


@workflow("o.recursive", key="{number}")
def recursive(order: Number) -> Steps[int, Bad]:
    yield from deeper(order.number)
    return (yield from recursive.child(Number(order.number - 1))) if order.number else 0


def test_recursion_ends() -> None:
    assert text(recursive).splitlines() == [
        "part deeper", "  activity o.one", "  choice n?", "    (yes)", "      again deeper", "    (no)",
        "choice order.number?", "  (yes)", "    child o.recursive", "  (no)",
    ]  # fmt: skip
    assert list(outline(recursive).children) == ["o.recursive"]


def test_many_parts_that_call_each_other_are_read_once() -> None:
    source = [
        "from flowdsl import *",
        "from typing import Never",
        "@do\ndef p0(n: int) -> Steps[int, Never]:\n    yield from sleep('1s')\n    return n",
    ]
    for i in range(1, 40):
        source.append(f"@do\ndef p{i}(n: int) -> Steps[int, Never]:\n    yield from p{i - 1}(n)\n    return (yield from p{i - 1}(n))")
    source.append("@workflow('o.wide')\ndef wide(n: int) -> Steps[int, Never]:\n    return (yield from p39(n))")
    wide = from_text("\n".join(source), "wide")
    drawn = outline(wide)
    assert sum(item.kind == "sleep" for _, item in drawn.walk()) == 1
    assert sum(1 for _ in drawn.walk()) < 200


FOLDER: list[Path] = []


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> None:
    FOLDER[:] = [tmp_path]


def from_text(source: str, name: str) -> Any:
    """What a module of that text holds."""
    path = FOLDER[0] / f"module_{len(list(FOLDER[0].iterdir()))}.py"
    path.write_text(source)
    space: dict[str, Any] = {"__name__": path.stem}
    exec(compile(source, str(path), "exec"), space)
    return space[name]


@pytest.mark.parametrize("twice", ["return {0} if n else {1}", "return {0}.then(lambda _: {1})", "return all_({0}, {1})"])
def test_many_functions_that_call_each_other_are_only_named(twice: str) -> None:
    source = ["from flowdsl import *", "from typing import Never", "def f0(n) -> Flow[None, Never]:\n    return sleep('1s')"]
    for i in range(1, 35):
        source.append(f"def f{i}(n) -> Flow[None, Never]:\n    " + twice.format(f"f{i - 1}(n)", f"f{i - 1}(-n)"))
    source.append("@workflow('o.tall')\ndef tall(n: int) -> Steps[None, Never]:\n    yield from f34(n)")
    drawn = outline(from_text("\n".join(source), "tall"))
    assert 1 <= sum(item.kind in ("sleep", "unknown") for _, item in drawn.walk()) <= 1000


def test_what_becomes_of_a_child_stands_on_its_start() -> None:
    @workflow("o.leaves")
    def leaves(n: int) -> Steps[int, Never]:
        yield from child_flow.start(Number(1), detached=True)
        yield from child_flow.start(Number(2), on_close="terminate")
        yield from child_flow.start(Number(3))
        return n

    assert [dict(item.facts) for item in outline(leaves).root.parts] == [{"detached": "yes"}, {"on close": "terminate"}, {}]


def test_a_child_is_known_where_it_is_handed_on_and_guessed_where_not() -> None:
    @do
    def waits(child: Child[int, Bad]) -> Steps[int, Bad]:
        return (yield from child.join())

    @workflow("o.hands")
    def hands(n: int) -> Steps[int, Bad]:
        running = yield from child_flow.start(Number(n))
        yield from waits(running)
        many = yield from each([1, 2], lambda i: child_flow.start(Number(i)))
        for other in many:
            yield from other.join()
        return n

    assert "join join o.child" in text(hands)
    assert "join join other" in text(hands)


def test_flows_in_lists_tables_and_names_are_followed() -> None:
    @workflow("o.held")
    def held(n: int) -> Steps[int, Bad]:
        flows = [one(1)]
        flows.append(two(2))
        yield from all_(*flows)
        nodes = {}
        for name in ("a", "b"):
            nodes[name] = node(one(1))
        yield from dag(nodes)
        last = one(3) if n else two(3)
        return (yield from last.timeout(timedelta(seconds=90)).attempt()).value_or(0)

    assert [line.split(" [")[0] for line in text(held).splitlines()] == [
        "all all of", "  activity o.one", "  activity o.two",
        "dag graph", "  node name", "    activity o.one",
        "attempt attempt", "  timeout timeout 1m30s", "    choice n?", "      activity o.one", "      (or) activity o.two",
    ]  # fmt: skip


def test_what_is_not_known_is_shown_as_it_is_written() -> None:
    @do
    def runs(make: Callable[[int], Flow[int, Bad]]) -> Steps[int, Bad]:
        return (yield from make(1))

    @workflow("o.unknown")
    def unknown(n: int) -> Steps[int, Bad]:
        return (yield from runs(json.loads(str(n))))

    assert text(unknown).splitlines() == ["part runs", "  unknown make(1)"]


def test_a_workflow_without_source_is_refused() -> None:
    space: dict[str, Any] = {"__name__": "prompt", "workflow": workflow, "one": one, "Steps": Steps, "Bad": Bad}
    exec("@workflow('o.typed')\ndef typed(n: int) -> Steps[int, Bad]:\n    return (yield from one(n))", space)
    with pytest.raises(DefinitionError, match="source cannot be read"):
        outline(space["typed"])


def test_drawing_runs_nothing() -> None:
    @workflow("o.bomb")
    def bomb(n: int) -> Steps[int, Bad]:
        raise AssertionError("a body ran")
        yield from each([1 / 0], lambda i: one(i))

    assert [item.kind for item in outline(bomb).root.parts] == ["raise", "each"]


# Pictures


NASTY = 'a"b<script>alert(1)</script>&`#;\x00\x1b[31m\n%% end'


def nasty() -> Outline:
    @workflow("o.nasty]]>\"'<b>")
    def nasty(n: int) -> Steps[int, Bad]:
        yield from audit('a"b<script>alert(1)</script>&`#;\x00\x1b[31m\n%% end', n)
        if n < 5 and str(n) != "<&>":
            yield from fail(Bad("]]>"))
        return n

    return outline(nasty)


def test_a_picture_stays_a_picture_whatever_the_names_are() -> None:
    root = ET.fromstring(nasty().to_svg())
    assert {element.tag.partition("}")[2] for element in root.iter()} <= {"svg", "title", "style", "rect", "g", "text", "path", "a"}
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any("<script>" in (word or "") for word in words)


def test_mermaid_keeps_text_as_text() -> None:
    assert quoted(NASTY).count('"') == 2
    chart = nasty().to_mermaid()
    assert "<script" not in chart and "`" not in chart and "\x00" not in chart
    assert all(line.count('"') % 2 == 0 for line in chart.splitlines())


EVERY = [*GOLDEN, everything, recursive]


@pytest.mark.parametrize("flow", EVERY, ids=lambda flow: flow.name)
def test_every_form_holds_every_step(flow: Workflow[Any, Any, Any]) -> None:
    drawn = outline(flow)
    names = {item.label for _, item in drawn.walk() if item.kind == "activity"}
    chart, facts = drawn.to_mermaid(), json.loads(drawn.to_json())
    titles = " ".join(element.text or "" for element in ET.fromstring(drawn.to_svg()).iter())
    for name in names:
        assert name in chart
        assert name in titles
    assert facts["sites"] == list(drawn.sites)
    assert facts["workflow"] == flow.name
    opened = sum(line.strip().startswith("subgraph ") for line in chart.splitlines())
    assert opened == sum(line.strip() == "end" for line in chart.splitlines())


def boxes(element: ET.Element, x: float = 0, y: float = 0) -> Iterator[tuple[float, float, float, float]]:
    """Where each step of a picture stands."""
    shift = element.get("transform")
    if shift:
        dx, dy = map(float, shift.removeprefix("translate(").removesuffix(")").split())
        x, y = x + dx, y + dy
    if element.get("class") == "box":
        yield x, y, x + float(element.get("width", 0)), y + float(element.get("height", 0))
    for child in element:
        yield from boxes(child, x, y)


@pytest.mark.parametrize("flow", EVERY, ids=lambda flow: flow.name)
def test_no_step_covers_another_or_leaves_the_picture(flow: Workflow[Any, Any, Any]) -> None:
    root = ET.fromstring(outline(flow).to_svg())
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    found = list(boxes(root))
    assert found
    for index, (x, y, right, bottom) in enumerate(found):
        assert x >= 0 and y >= 0 and right <= width and bottom <= height
        for x2, y2, right2, bottom2 in found[index + 1 :]:
            assert right <= x2 + 0.2 or right2 <= x + 0.2 or bottom <= y2 + 0.2 or bottom2 <= y + 0.2


def test_a_child_links_to_its_own_outline_where_that_is_drawn_too() -> None:
    both = svg([(outline(recursive), None), (outline(child_flow), None)])
    assert f'href="#{anchor("o.recursive")}"' in both
    assert f'id="{anchor("o.recursive")}"' in both
    assert "href" not in svg([(outline(passages_sync.main_sync), None)])
    assert "-.-> w0" in mermaid([(outline(recursive), None)])


def test_an_item_has_a_path_of_its_own() -> None:
    paths = [path for path, _ in outline(everything).walk()]
    assert len(paths) == len(set(paths))
    assert outline(everything).facts()["root"]["parts"][2]["id"] == "0.2"
