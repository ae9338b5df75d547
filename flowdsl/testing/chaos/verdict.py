"""The verdict: what was promised, counted from rows and from the ledger by queries and code of its own."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Any

from attrs import define, field

from flowdsl.testing.chaos.evidence import ATTEMPT, DEFECT, ENDED, INTERRUPTED, OPERATOR, SUCCESS, Evidence, exit_of
from flowdsl.testing.chaos.orders import RATE, TICK, Order, errands, token
from flowdsl.testing.chaos.prediction import Possible, Possibles, agrees, predicted

SCHEDULED = "chaos.tick"


@define
class Trial:
    """What is judged: what was asked, and what it left behind."""

    seed: int
    orders: list[Order]
    evidence: Evidence
    _starts: dict[int, str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        said = ((one["call"].partition("/"), one["said"]) for one in self.evidence.told if one["state"] == "ok")
        self._starts = {int(order): id for (order, _, call), id in said if call == "start"}

    def of_order(self, order: Order) -> str | None:
        """The id of its execution, as the front was told."""
        return self._starts.get(order.index)


Judge = Callable[[Trial], Iterator[str]]


def starts(trial: Trial) -> Iterator[str]:
    """Every acknowledged start exists, and one execution per key."""
    rows, said = trial.evidence.executions, defaultdict[int, set[str]](set)
    for one in trial.evidence.told:
        if one["state"] == "ok" and "/start" in one["call"]:
            said[int(one["call"].partition("/")[0])].add(one["said"])
    for order in trial.orders:
        ids = said[order.index]
        if len(ids) != 1:
            yield f"order {order.index} ({order.kind}): {'its start was never acknowledged' if not ids else f'one key, several executions: {ids}'}"
        for id in ids - rows.keys():
            yield f"order {order.index} ({order.kind}): LOST, execution {id} was acknowledged and does not exist"
    known = set().union(*said.values())
    for id, row in rows.items():
        if row["parent"] is None and row["workflow"] != SCHEDULED and id not in known:
            yield f"execution {id} ({row['workflow']}, key {row['key']}): nobody was told of it"


def ends(trial: Trial) -> Iterator[str]:
    """Every execution has ended; none is stuck, none blocked."""
    for id, row in trial.evidence.executions.items():
        if row["status"] not in ENDED:
            last = trial.evidence.journal(id)[-1:]
            yield (
                f"execution {id} ({row['workflow']}) is {row['status']}: owner {row['owner']}, wake {row['wake']}, epoch {row['epoch']},"
                f" cause {row['cause']}, last entry {[(one['position'], one['kind'], one['step'], one['fingerprint']) for one in last]}"
            )


def outcomes(trial: Trial) -> Iterator[str]:
    """Each execution ended in a way that its order allows, and did exactly what goes with that way."""
    seen: set[str] = set()
    for order in trial.orders:
        id = trial.of_order(order)
        if id in trial.evidence.executions:
            yield from _agreement(trial.evidence, str(id), predicted(order), f"order {order.index} ({order.kind})", seen)
    for id in trial.evidence.executions.keys() - seen:
        if trial.evidence.executions[id]["workflow"] != SCHEDULED:
            yield f"execution {id} ({trial.evidence.executions[id]['workflow']}) was not predicted"


def _agreement(evidence: Evidence, id: str, possibles: Possibles, name: str, seen: set[str]) -> Iterator[str]:
    row = evidence.executions[id]
    seen.add(id)
    if row["status"] not in ENDED:
        seen |= _family(evidence, id)
        return
    if row["exit"] is None:
        yield f"{name} {id}: it has ended without an exit"
        return
    kind, value = exit_of(row)
    recorded = {label for label, _ in evidence.recorded(id)}
    fitting = [one for one in possibles if one.exit == kind and agrees(one.value, value)]
    exact = [one for one in fitting if one.recorded <= recorded <= one.recorded | one.maybe]
    if not exact:
        seen |= _family(evidence, id)
        expected = " or ".join(f"{one.exit} {one.value!r}" for one in possibles) if not fitting else sorted(fitting[0].recorded)
        yield f"{name} {id}: {kind} {value!r}, recorded {sorted(recorded)}; expected {expected}"
        return
    yield from _calls(evidence, id, exact, name)
    yield from _undone(evidence, id, exact[0], name)
    yield from _children(evidence, id, exact[0], name, seen)


def _family(evidence: Evidence, id: str) -> set[str]:
    found = set(evidence.children.get(id, ()))
    return found.union(*(_family(evidence, child) for child in found)) if found else found


def _calls(evidence: Evidence, id: str, exact: list[Possible], name: str) -> Iterator[str]:
    allowed = frozenset().union(*(one.recorded | one.maybe | one.called for one in exact))
    for label in evidence.labels.get(id, {}).values():
        if label not in allowed:
            yield f"{name} {id}: {label} happened, and should not have"


def _children(evidence: Evidence, id: str, possible: Possible, name: str, seen: set[str]) -> Iterator[str]:
    places: dict[str, list[str]] = defaultdict(list)
    for child in evidence.children.get(id, ()):
        asked = json.loads(evidence.executions[child]["request"])
        places[f"{asked['order']}/{asked['place']}"].append(child)
    for place in places.keys() | possible.children.keys():
        found, wanted = places.get(place, []), possible.children.get(place)
        if wanted is None or len(found) != 1:
            yield f"{name} {id}: child {place} exists {len(found)} times, expected {int(wanted is not None)}"
        for child in found:
            yield from _agreement(evidence, child, wanted or (), f"{name} child {place}", seen)


def _undone(evidence: Evidence, id: str, possible: Possible, name: str) -> Iterator[str]:
    """What was done is undone, last first: by the journal, and by the ledger's order of first calls."""
    position = {label: row["position"] for label, row in evidence.recorded(id)}
    first = {label: evidence.calls[key][0]["at"] for key, label in evidence.labels.get(id, {}).items() if key in evidence.calls}
    done = [pair for pair in possible.undos if pair[0] in position]
    for do, undo in possible.undos:
        if (do in position) != (undo in position):
            yield f"{name} {id}: {do} is {'' if do in position else 'not '}recorded, {undo} is {'' if undo in position else 'not '}"
    undos = [undo for _, undo in reversed(done) if undo in position]
    for earlier, later in pairwise(undos):
        if position[earlier] > position[later] or first[earlier] > first[later]:
            yield f"{name} {id}: {later} came before {earlier}"


def journals(trial: Trial) -> Iterator[str]:
    """Journals are gapless, epochs and times never fall along them, a step has one exit, and no entry is of an epoch that never was."""
    for id, rows in trial.evidence.journals.items():
        execution = trial.evidence.executions.get(id)
        if execution is None:
            yield f"journal {id} is of no execution"
            continue
        if [row["position"] for row in rows] != list(range(len(rows))):
            yield f"journal {id}: positions {[row['position'] for row in rows]}"
        for name in ("epoch", "at"):
            if [row[name] for row in rows] != sorted(row[name] for row in rows):
                yield f"journal {id}: {name} falls along positions"
        if rows[-1]["epoch"] > execution["epoch"]:
            yield f"journal {id}: an entry of epoch {rows[-1]['epoch']}, and the execution is at {execution['epoch']}"
        last = max((row["position"] for row in rows if row["kind"] == OPERATOR), default=len(rows))
        for part in (rows[:last], trial.evidence.standing(id)):  # as it was before a person let something run anew, and as it stands
            exits = Counter(row["step"] for row in part if SUCCESS <= row["kind"] <= DEFECT)
            yield from (f"journal {id}: CONFLICT, step {step} has {count} exits" for step, count in exits.items() if count > 1)


def marks(trial: Trial) -> Iterator[str]:
    """A transactional activity's row exists if and only if its success is recorded, and once."""
    found = Counter(row["key"] for row in trial.evidence.marks)
    recorded = Counter(
        f"{id}/{row['step']}"
        for id, rows in trial.evidence.journals.items()
        for row in rows
        if row["kind"] == SUCCESS and row["fingerprint"].startswith("perform chaos.mark ")
    )
    for key in found.keys() | recorded.keys():
        if found[key] != 1 or recorded[key] != 1:
            yield f"mark {key}: {found[key]} rows, {recorded[key]} recorded successes"


def effects(trial: Trial) -> Iterator[str]:
    """Every recorded success was called, under one key, and carries the ledger's receipt; no call is one too many."""
    evidence = trial.evidence
    keys = defaultdict[str, set[str]](set)
    for labels in evidence.labels.values():
        for key, label in labels.items():
            keys[label].add(key.partition("@")[0])
    yield from (f"effect {label} happened under {len(found)} keys: {sorted(found)}" for label, found in keys.items() if len(found) > 1)
    for id in evidence.journals:
        for label, row in evidence.recorded(id):
            name = row["fingerprint"].split(" ")[1]
            if name == "chaos.mark":
                continue
            calls = evidence.calls.get(evidence.key(id, row["step"]), [])
            if not calls:
                yield f"{id}/{row['step']}: {name} is recorded as a success, and nobody called"
            elif json.loads(row["body"])["number"] != calls[0]["receipt"]:
                yield f"{label}: recorded receipt {row['body']!r}, the ledger gave {calls[0]['receipt']}"
    for key, calls in evidence.calls.items():
        yield from _counted(evidence, key, calls)


def _counted(evidence: Evidence, key: str, calls: list[dict[str, Any]]) -> Iterator[str]:
    """Calls of one attempt: one for each epoch at most. Attempts: one more than were recorded at most. And one effect, whoever calls."""
    id, _, step = key.partition("@")[0].partition("/")
    row = evidence.executions.get(id)
    if row is None:
        yield f"{calls[0]['label']} was called for an execution that does not exist: {id}"
        return
    if len({(call["label"], call["value"], call["receipt"]) for call in calls}) > 1:
        yield f"{key}: one key, several effects: {calls}"
    tries = [one for one in evidence.journal(id) if one["step"] == step and one["kind"] in (ATTEMPT, INTERRUPTED)]
    for number, count in Counter(call["number"] for call in calls).items():
        if count > row["epoch"] or number > len(tries) + 1:
            name = f"{key} ({calls[0]['label']})"
            yield f"{name}: attempt {number} was called {count} times in {row['epoch']} epochs, {len(tries)} attempts are recorded"
    if calls[0]["label"].endswith("/once") and len(calls) > 1:
        yield f"{key}: at most once, and called {len(calls)} times"


def timers(trial: Trial) -> Iterator[str]:
    """No timer was early, by the ledger's clock for what it stands between, by the server's for what waited in vain."""
    parts = {"timers": 1, "too_late": 1, "loop": 4}
    first = {calls[0]["label"]: calls[0]["at"] for calls in trial.evidence.calls.values()}
    for order in trial.orders:
        pause = order.pause // parts[order.kind] / 1000 if order.kind in parts else 0
        row = trial.evidence.executions.get(trial.of_order(order) or "")
        for place in range(order.size if pause else 0):
            before, after = (first.get(order.label(f"step{n}")) for n in (place, place + 1))
            if before and after and after - before < pause:
                yield f"order {order.index} ({order.kind}): a timer of {pause} s was over after {after - before:.4f} s"
        if order.kind == "silence" and row and row["ended"] and (row["ended"] - row["started"]).total_seconds() < order.pause / 1000:
            yield f"order {order.index}: it gave up after {row['ended'] - row['started']}, {order.pause} ms were said"


def limits(trial: Trial) -> Iterator[str]:
    """The bounded activity was not called more often than its rate allows, from the first start to its last call."""
    places = {order.index for order in trial.orders if order.kind == "bounded"}
    times = sorted(call["at"] for calls in trial.evidence.calls.values() for call in calls if int(call["label"].partition("/")[0]) in places)
    began = min((row["started"].timestamp() for row in trial.evidence.executions.values()), default=0.0)
    if times and len(times) > RATE * (times[-1] - began) + RATE:
        yield f"{len(times)} calls in {times[-1] - began:.1f} s, and {RATE} a second are allowed"


def schedule(trial: Trial) -> Iterator[str]:
    """From its first instant to its last each was started, once, by an execution that did its work; and by the clock alone."""
    evidence, period = trial.evidence, timedelta(seconds=TICK)
    for earlier, later in pairwise(evidence.firings):
        if later["instant"] - earlier["instant"] != period:
            yield f"{later['instant'] - earlier['instant']} from {earlier['instant']} to the next, {period} were said"
    told = Counter(str(row["execution"]) for row in evidence.firings)
    there = [id for id, row in evidence.executions.items() if row["workflow"] == SCHEDULED]
    for id in told.keys() | set(there):
        row, labels = evidence.executions.get(id), [label for label, _ in evidence.recorded(id)]
        if told[id] != 1 or row is None or row["status"] != "succeeded" or labels != [f"-1/{id}"]:
            yield f"execution {id} of {told[id]} instants: {row and row['status']}, recorded {labels}"
    yield from (f"instant {row['instant']}: {row['outcome']}" for row in evidence.firings if row["outcome"] != "started")
    if not evidence.firings:
        yield "the schedule never fired"
    for row in evidence.schedules:  # paused since the last fault: all before that is decided on
        if evidence.firings and row["upcoming"] != evidence.firings[-1]["instant"] + period:
            yield f"{row['id']} goes on at {row['upcoming']}, and the last instant was {evidence.firings[-1]['instant']}"


def mails(trial: Trial) -> Iterator[str]:
    """Each acknowledged signal was taken once, or still lies where it was sent to."""
    evidence, found = trial.evidence, Counter[str]()
    for rows in evidence.journals.values():
        taken = (row for row in rows if row["kind"] == SUCCESS and row["fingerprint"].startswith("receive chaos-news "))
        found.update(json.loads(row["body"])["token"] for row in taken)
    for row in (*evidence.mailbox, *evidence.unmatched):
        if row["name"] == "chaos-news":
            found[json.loads(row["body"])["token"]] += 1
    yield from (f"signal {name} acted {count} times" for name, count in found.items() if count > 1)
    said = {one["call"]: one["said"] for one in evidence.told if one["state"] == "ok"}
    for order in trial.orders:
        for errand in errands(trial.seed, order):
            if errand.call in ("signal", "letter"):
                answer = said.get(f"{order.index}/{errand.name}")
                if answer is None or (answer != "ended" and not found[token(order.index, errand.number)]):
                    yield f"signal {token(order.index, errand.number)}: {f'answered {answer}, and LOST' if answer else 'never acknowledged'}"


def versions(trial: Trial) -> Iterator[str]:
    """Each did what the release does that it was started with, whoever ran it."""
    for id, row in trial.evidence.executions.items():
        if row["workflow"] == SCHEDULED and row["status"] == "succeeded" and (value := exit_of(row)[1]) != row["version"]:
            yield f"execution {id} ({SCHEDULED}): of version {row['version']}, and did what version {value} does"
    for order in trial.orders:
        row = trial.evidence.executions.get(trial.of_order(order) or "")
        if order.kind != "deployed" or row is None or row["status"] != "succeeded":
            continue
        expected, (_, value) = predicted(order)[row["version"] - 1].value, exit_of(row)
        if value != expected:
            yield f"order {order.index}: of version {row['version']}, and gave {value}; expected {expected}"


def front(trial: Trial) -> Iterator[str]:
    """Every call was acknowledged in the end, and met no error but that the store or the service was away; of a key one start was the first."""
    said = {one["call"] for one in trial.evidence.told if one["state"] == "ok"}
    for order in trial.orders:
        for errand in errands(trial.seed, order):
            for call in [errand.name, f"{errand.name}/again"][: 1 + errand.twice]:
                if f"{order.index}/{call}" not in said:
                    yield f"call {order.index}/{call} ({order.kind}) was never acknowledged"
    begun = Counter(one["call"].partition("/")[0] for one in trial.evidence.told if one.get("new"))
    yield from (f"order {order}: {count} of its starts were answered as the first" for order, count in begun.items() if count > 1)
    for one in trial.evidence.told:
        if one["state"] == "unknown" and not one["expected"]:
            yield f"call {one['call']}: {one['error']}"


JUDGES: dict[str, Judge] = {
    "acknowledged starts exist": starts,
    "all have ended": ends,
    "ended as predicted": outcomes,
    "journals without conflict": journals,
    "transactional once": marks,
    "effects once": effects,
    "timers never early": timers,
    "rate kept": limits,
    "schedule complete": schedule,
    "signals once": mails,
    "each by its version": versions,
    "calls answered": front,
}


def judged(trial: Trial) -> dict[str, list[str]]:
    """What is wrong, under each head."""
    return {name: list(judge(trial)) for name, judge in JUDGES.items()}
