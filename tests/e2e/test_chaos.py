"""Chaos with real processes: nothing lost, doubled or stuck; and a verdict that would have seen it."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from flowdsl.testing.chaos.evidence import gathered, read_logs
from flowdsl.testing.chaos.ledger import ADDRESS, tell, tell_blocking
from flowdsl.testing.chaos.nemesis import DECK
from flowdsl.testing.chaos.orders import KINDS, RELEASES, drawn
from flowdsl.testing.chaos.prediction import predicted
from flowdsl.testing.chaos.processes import begin, end, ready
from flowdsl.testing.chaos.run import Report, Run, Wish
from flowdsl.testing.chaos.server import Postgres
from flowdsl.testing.chaos.verdict import JUDGES, Trial, judged

SEED = 1
WORKFLOWS = 60
LONG = pytest.mark.skipif(not os.environ.get("FLOWDSL_LONG"), reason="the long form: FLOWDSL_LONG=1")


def chaos(*options: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "flowdsl", "chaos", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


@pytest.fixture(scope="module")
def quick() -> Iterator[tuple[int, dict[str, Any], str]]:
    """One run for all tests here; its evidence stays until they are over."""
    code, facts, said = chaos("--workflows", str(WORKFLOWS), "--seed", str(SEED), "--keep")
    yield code, facts, said
    if facts.get("passed"):
        shutil.rmtree(facts["evidence"], ignore_errors=True)


@pytest.fixture(scope="module")
def trial(quick: tuple[int, dict[str, Any], str]) -> Trial:
    """What the run left behind, read anew."""
    folder = Path(quick[1]["evidence"])

    async def read() -> Trial:
        postgres = await Postgres.start(folder)
        try:
            return Trial(SEED, drawn(SEED, WORKFLOWS), await gathered(postgres, folder))
        finally:
            await postgres.stop()

    return asyncio.run(read())


# The run


@pytest.mark.timeout(300)
def test_nothing_is_lost_doubled_or_stuck(quick: tuple[int, dict[str, Any], str]) -> None:
    code, facts, said = quick
    assert (code, facts.get("wrong")) == (0, {}), f"{json.dumps(facts, indent=1)}\n{said}"
    assert facts["passed"] is True
    assert facts["executions"].keys() == {"succeeded", "failed", "cancelled"}
    assert sum(facts["executions"].values()) > WORKFLOWS
    assert facts["repeat"] == f"flowdsl chaos --workflows {WORKFLOWS} --seed {SEED} --workers 4"


def test_every_fault_was_tried_and_most_really_hit(quick: tuple[int, dict[str, Any], str]) -> None:
    faults = quick[1]["faults"]
    assert faults.keys() == DECK.keys()
    assert all(one["tried"] >= 1 for one in faults.values())
    assert sum(one["hit"] for one in faults.values()) >= sum(one["tried"] for one in faults.values()) / 2
    assert faults["kill worker"]["met"] + faults["freeze worker"]["met"] >= 1
    assert faults["swallow"]["met"] + faults["late commit"]["met"] >= 1
    assert faults["kill service"]["met"] + faults["kill front"]["met"] >= 1
    assert faults["rolling deploy"]["met"] >= 1
    assert quick[1]["seen"]["execution.taken_over"] >= 1


def test_the_service_was_asked_and_versions_stood_side_by_side(trial: Trial) -> None:
    assert sum("new" in one for one in trial.evidence.told if one["state"] == "ok") >= WORKFLOWS // 4
    rows = trial.evidence.executions.values()
    assert {row["version"] for row in rows if row["workflow"] == "chaos.deployed"} <= set(range(1, RELEASES + 1))
    assert {1, 2} <= {row["version"] for row in rows if row["workflow"] == "chaos.tick"} <= set(range(1, RELEASES + 1))


def test_the_evidence_is_judged_again_the_same(trial: Trial) -> None:
    assert {name: found for name, found in judged(trial).items() if found} == {}


def processes_in(folder: str) -> list[int]:
    """All processes that name it, or have it as a place of theirs."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if folder in (path / "cmdline").read_text() or folder in (path / "environ").read_text():
                found.append(int(path.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_called_off_it_leaves_nothing_behind(how: signal.Signals) -> None:
    base = Path(tempfile.mkdtemp(prefix="flowdsl-tests-"))
    base.chmod(0o755)
    command = [sys.executable, "-m", "flowdsl", "chaos", "--workflows", "50"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(base)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background has it ignored
    )
    try:
        for _ in range(1800):
            folders = list(base.glob("flowdsl-chaos-*/worker-1.log"))
            if folders:
                break
            time.sleep(0.05)
        assert folders, "it never began"
        process.send_signal(how)
        assert process.wait(60) == 128 + how
        assert list(base.iterdir()) == []
        for _ in range(1200):  # one that was just being started ends when it finds us gone
            if not processes_in(str(base)):
                break
            time.sleep(0.05)
        assert processes_in(str(base)) == []
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(base, ignore_errors=True)


# The verdict sees


def of_kind(trial: Trial, kind: str) -> tuple[Any, str]:
    """The first order of a kind, and its execution."""
    order = next(order for order in trial.orders if order.kind == kind)
    return order, str(trial.of_order(order))


def lost(trial: Trial) -> None:
    del trial.evidence.executions[of_kind(trial, "sequence")[1]]


def started_twice(trial: Trial) -> None:
    first = next(one for one in trial.evidence.told if one["state"] == "ok" and one["call"].endswith("/start"))
    trial.evidence.told.append({**first, "said": "01a1fd50-0000-0000-0000-000000000000"})


def stuck(trial: Trial) -> None:
    trial.evidence.executions[of_kind(trial, "timers")[1]].update(status="suspended", exit=None)


def wrong_answer(trial: Trial) -> None:
    trial.evidence.executions[of_kind(trial, "sequence")[1]]["exit"] = b'{"success":1}'


def step_skipped(trial: Trial) -> None:
    _, id = of_kind(trial, "saga")
    _, skipped = trial.evidence.recorded(id)[0]  # the first entry may be an attempt that a fault met
    trial.evidence.journals[id] = [row for row in trial.evidence.journals[id] if row["position"] != skipped["position"]]


def child_missing(trial: Trial) -> None:
    _, id = of_kind(trial, "children")
    trial.evidence.children[id].pop()


def child_doubled(trial: Trial) -> None:
    _, id = of_kind(trial, "keyed")
    trial.evidence.children[id].append(trial.evidence.children[id][0])


def nobodys(trial: Trial) -> None:
    _, id = of_kind(trial, "sequence")
    trial.evidence.executions["stranger"] = {**trial.evidence.executions[id], "key": "stranger"}


def two_exits(trial: Trial) -> None:
    rows = trial.evidence.journals[of_kind(trial, "sequence")[1]]
    rows.append({**next(row for row in rows if row["kind"] == 1), "position": len(rows), "at": rows[-1]["at"], "epoch": rows[-1]["epoch"]})


def gap(trial: Trial) -> None:
    trial.evidence.journals[of_kind(trial, "fan")[1]].pop(1)


def epoch_falls(trial: Trial) -> None:
    trial.evidence.journals[of_kind(trial, "fan")[1]][0]["epoch"] = 1000


def undone_in_order(trial: Trial) -> None:
    _, id = of_kind(trial, "saga")
    undos = [row for label, row in trial.evidence.recorded(id) if label.endswith("undone")]
    undos[0]["step"], undos[-1]["step"] = undos[-1]["step"], undos[0]["step"]


def mark_doubled(trial: Trial) -> None:
    trial.evidence.marks.append(trial.evidence.marks[0])


def mark_missing(trial: Trial) -> None:
    trial.evidence.marks.pop()


def never_called(trial: Trial) -> None:
    _, id = of_kind(trial, "timers")
    del trial.evidence.calls[next(key for key in trial.evidence.calls if key.startswith(id))]


def two_keys(trial: Trial) -> None:
    _, id = of_kind(trial, "timers")
    labels = trial.evidence.labels[id]
    labels[f"{id}/another"] = next(iter(labels.values()))


def other_receipt(trial: Trial) -> None:
    _, id = of_kind(trial, "timers")
    key = next(key for key in trial.evidence.calls if key.startswith(id))
    trial.evidence.calls[key][0]["receipt"] += 1000


def called_too_often(trial: Trial) -> None:
    _, id = of_kind(trial, "timers")
    calls = trial.evidence.calls[next(key for key in trial.evidence.calls if key.startswith(id))]
    calls *= trial.evidence.executions[id]["epoch"] + 1


def twice_at_most_once(trial: Trial) -> None:
    ids = {str(trial.of_order(order)) for order in trial.orders if order.kind == "once"}
    key, calls = next((key, calls) for key, calls in trial.evidence.calls.items() if key.split("/")[0] in ids and calls[0]["label"].endswith("/once"))
    trial.evidence.executions[key.split("/")[0]]["epoch"] = 9  # one that was called: a fault may have come before the call
    calls *= 2


def early(trial: Trial) -> None:
    order, id = of_kind(trial, "timers")
    second = next(calls for key, calls in trial.evidence.calls.items() if key.startswith(id) and calls[0]["label"] == order.label("step1"))
    second[0]["at"] -= order.pause / 1000 + 3600


def gave_up_early(trial: Trial) -> None:
    order, id = of_kind(trial, "silence")
    row = trial.evidence.executions[id]
    row["ended"] = row["started"] + timedelta(milliseconds=order.pause - 1)


def signal_lost(trial: Trial) -> None:
    _, id = of_kind(trial, "signals")
    rows = trial.evidence.journals[id]
    rows.remove(next(row for row in rows if row["fingerprint"].startswith("receive ")))


def signal_doubled(trial: Trial) -> None:
    _, id = of_kind(trial, "letters")
    row = next(row for row in trial.evidence.journals[id] if row["fingerprint"].startswith("receive "))
    trial.evidence.mailbox.append({"name": "chaos-news", "body": row["body"]})


def too_often_a_second(trial: Trial) -> None:
    _, id = of_kind(trial, "bounded")
    call = next(calls[0] for key, calls in trial.evidence.calls.items() if key.startswith(id))
    trial.evidence.calls["another"] = [call] * 1000


def instant_missed(trial: Trial) -> None:
    trial.evidence.firings.pop(1)


def instant_doubled(trial: Trial) -> None:
    trial.evidence.firings.insert(1, trial.evidence.firings[1])


def last_instant_missed(trial: Trial) -> None:
    trial.evidence.firings.pop()


def of_another_version(trial: Trial) -> None:
    _, id = of_kind(trial, "deployed")
    row = trial.evidence.executions[id]
    row["version"] += -1 if row["version"] > 1 else 1


def of_another_release(trial: Trial) -> None:
    next(row for row in trial.evidence.executions.values() if row["workflow"] == "chaos.tick")["version"] += 1


def first_twice(trial: Trial) -> None:
    first = next(one for one in trial.evidence.told if one.get("new"))
    trial.evidence.told.append(first)


def run_anew_and_twice(trial: Trial) -> None:
    _, id = of_kind(trial, "retried")
    rows = trial.evidence.journals[id]
    rows.append({**rows[-1], "position": len(rows)})


def never_acknowledged(trial: Trial) -> None:
    trial.evidence.told[:] = [one for one in trial.evidence.told if not (one["call"].endswith("/cancel") and one["state"] == "ok")]


def odd_answer(trial: Trial) -> None:
    trial.evidence.told.append({"call": "0/start", "state": "unknown", "error": "KeyError: 'x'", "expected": False})


@pytest.mark.parametrize(
    ("plant", "head"),
    [
        (lost, "acknowledged starts exist"),
        (started_twice, "acknowledged starts exist"),
        (nobodys, "acknowledged starts exist"),
        (stuck, "all have ended"),
        (wrong_answer, "ended as predicted"),
        (step_skipped, "ended as predicted"),
        (child_missing, "ended as predicted"),
        (child_doubled, "ended as predicted"),
        (undone_in_order, "ended as predicted"),
        (two_exits, "journals without conflict"),
        (gap, "journals without conflict"),
        (epoch_falls, "journals without conflict"),
        (run_anew_and_twice, "journals without conflict"),
        (mark_doubled, "transactional once"),
        (mark_missing, "transactional once"),
        (never_called, "effects once"),
        (two_keys, "effects once"),
        (other_receipt, "effects once"),
        (called_too_often, "effects once"),
        (twice_at_most_once, "effects once"),
        (early, "timers never early"),
        (gave_up_early, "timers never early"),
        (too_often_a_second, "rate kept"),
        (instant_missed, "schedule complete"),
        (instant_doubled, "schedule complete"),
        (last_instant_missed, "schedule complete"),
        (of_another_version, "each by its version"),
        (of_another_release, "each by its version"),
        (first_twice, "calls answered"),
        (signal_lost, "signals once"),
        (signal_doubled, "signals once"),
        (odd_answer, "calls answered"),
        (never_acknowledged, "calls answered"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_verdict_sees(trial: Trial, plant: Callable[[Trial], None], head: str) -> None:
    planted = copy.deepcopy(trial)
    assert list(JUDGES[head](planted)) == []
    plant(planted)
    assert list(JUDGES[head](planted)), f"{plant.__name__} went unseen"


def test_tracebacks_and_lost_tasks_are_seen(tmp_path: Path) -> None:
    (tmp_path / "worker-1.log").write_text(
        'Traceback (most recent call last):\n  File "a.py", line 1\nKeyError: 1\n'
        "a.py:1: RuntimeWarning: coroutine 'b' was never awaited\n"
        '{"event": "poll.failed", "level": "error", "traceback": "Traceback …\\nValueError: no"}\n'
        '{"event": "heart.missed", "level": "warning"}\n'
    )
    logs = read_logs(tmp_path)
    assert [one.rpartition(": ")[0] for one in logs.unexpected] == [
        "worker-1.log:1: KeyError", "worker-1.log:4: a.py:1: RuntimeWarning", "worker-1.log: poll.failed: ValueError",
    ]  # fmt: skip
    assert logs.events == {"poll.failed": 1, "heart.missed": 1}


# The parts


def test_a_seed_draws_the_same_and_every_kind_first() -> None:
    assert drawn(7, 100) == drawn(7, 100) != drawn(8, 100)
    assert {order.kind for order in drawn(7, len(KINDS))} == KINDS.keys()
    assert all(predicted(order) for order in drawn(7, 200))


async def test_the_ledger_makes_one_effect_of_a_key_and_counts_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = await begin(tmp_path, "ledger", "ledger", [str(tmp_path), str(tmp_path / "socket")], {})
    monkeypatch.setenv(ADDRESS, str(tmp_path / "socket"))
    try:
        await ready(ledger)
        told = await asyncio.gather(*(tell({"key": f"k{n % 3}", "label": "x"}) for n in range(30)))
        receipts = [receipt for receipt, _ in told]
        assert sorted(count for _, count in told) == list(range(1, 31))
        assert await asyncio.to_thread(tell_blocking, {"key": "k0", "label": "x"}) == (receipts[0], 31)
        ledger.process.kill()
        await ledger.process.wait()
    finally:
        await end(ledger)
    calls = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert len(calls) == 31, "what was acknowledged is on disk"
    assert {call["key"]: call["receipt"] for call in calls} == {f"k{n}": receipts[n] for n in range(3)}
    assert sorted(set(receipts)) == [1, 2, 3] and sum(not call["again"] for call in calls) == 3


# The long forms


@LONG
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_thousand() -> None:
    code, facts, said = chaos("--workflows", "10000")
    assert (code, facts.get("wrong")) == (0, {}), f"{json.dumps(facts, indent=1)}\n{said}"
    assert all(one["hit"] >= 5 for one in facts["faults"].values()), facts["faults"]


IGNORED = (("x.workflow || '@' || x.version = any(p_versions)", "true"),)
"""Who claims does not look at versions."""
SABOTAGES: dict[str, tuple[tuple[str, str], ...]] = {
    "no fence": (
        ("x.owner = p_worker", "true"), ("x.epoch = t.epoch", "true"), ("x.epoch = e.epoch", "true"), ("x.epoch = p_epoch", "true"),
        ("and j.epoch = t.epoch", ""), ("id = p_worker and not gone for key share", "id = p_worker"),
        ("clock_timestamp() - lease", "clock_timestamp() - lease * 0.15"),
    ),
    "suspends without a look at the mail": (("or x.mail = t.seen", "or true"),),
    "no delivery ids": (("    return 'again';", "    null;"),),
    "mail is not taken away": (("delete from flowdsl.mailbox b using", "update flowdsl.mailbox b set seq = b.seq from"),),
    "claims what it does not know": IGNORED,
    "goes on with whichever version it knows": (("x.workflow, x.version, x.scope", "x.workflow, 1, x.scope"),),
}  # fmt: skip


class Sabotaged(Run):
    """A run on functions of the store that were broken on purpose."""

    cuts: ClassVar[tuple[tuple[str, str], ...]] = ()

    async def prepare(self, postgres: Postgres) -> None:
        await super().prepare(postgres)
        rows = await postgres.rows(
            "select pg_get_functiondef(p.oid) as text from pg_proc p join pg_namespace n on n.oid = p.pronamespace"
            " where n.nspname = 'flowdsl' and p.prokind = 'f'"
        )
        texts = [row["text"] for row in rows]
        for old, new in self.cuts:
            assert any(old in text for text in texts), f"there is no {old!r} to break any more"
            texts = [text.replace(old, new) for text in texts]
        for row, text in zip(rows, texts, strict=True):
            if text != row["text"]:
                await postgres.rows(text)


def carried_out(kind: type[Sabotaged], wish: Wish) -> Report:
    folder = Path(tempfile.mkdtemp(prefix="flowdsl-chaos-"))
    folder.chmod(0o755)
    try:
        return asyncio.run(kind(wish, folder, lambda progress: None).carry_out())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Deployed(Sabotaged):
    """A run of deploys alone, on claims that ignore versions."""

    cuts = IGNORED
    deck: ClassVar = {"rolling deploy": 1}
    patience = 2.0


@pytest.mark.timeout(300)
def test_a_claim_that_ignores_versions_does_not_pass_a_deploy() -> None:
    found: list[str] = []
    for seed in range(3):  # who claims what first is the machine's
        found += carried_out(Deployed, Wish(1, seed, workers=3, minutes=0.01)).wrong["all have ended"]
        if found:
            break
    assert any("is blocked" in one and "no version of chaos.tick" in one for one in found), found


@LONG
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SABOTAGES)
def test_a_broken_store_does_not_pass(name: str) -> None:
    sabotaged = type("Named", (Sabotaged,), {"cuts": SABOTAGES[name]})
    for seed in range(4):
        report = carried_out(sabotaged, Wish(250, seed))
        if not report.passed:
            print(name, seed, {head: found[:2] for head, found in report.wrong.items() if found})
            return
    pytest.fail("four runs on a broken store passed")
