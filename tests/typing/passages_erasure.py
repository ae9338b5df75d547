"""Erasure: thirty days in which orders from outside may come at any time, and a child that works beside."""

from datetime import datetime, timedelta
from typing import Never, TypeAlias

from attrs import evolve, frozen

from flowdsl import (
    Child,
    Died,
    Failure,
    Outcome,
    Result,
    Steps,
    Success,
    activity,
    audit,
    do,
    each_attempt,
    execution,
    fail,
    race,
    signal,
    workflow,
)


@frozen
class Proof:
    token: str


@frozen
class ErasureRequest:
    request_id: str
    subject: str
    proof: Proof


@frozen
class Hold:
    approver: str


@frozen
class Release:
    approver: str


@frozen
class Extend:
    approver: str
    by: timedelta


@frozen
class Withdraw:
    approver: str


@frozen
class Case:
    due: datetime
    held: bool = False

    def after(self, order: Hold | Release | Extend) -> "Case":
        match order:
            case Hold():
                return evolve(self, held=True)
            case Release():
                return evolve(self, held=False)
            case Extend():
                return evolve(self, due=self.due + order.by)


@frozen
class Deletions:
    subject: str
    systems: tuple[str, ...]


@frozen
class Deletion:
    subject: str
    system: str


@frozen
class Tally:
    deleted: int
    failed: int
    systems: tuple[str, ...]


@frozen
class Scans:
    subject: str


@frozen
class Erased:
    system: str
    records: int


@frozen
class Certify:
    request_id: str
    erased: tuple[Erased, ...]
    others: Outcome[Tally, Died]


@frozen
class Certificate:
    id: str


@frozen
class Withdrawn:
    approver: str


@frozen
class Overdue:
    what: str


@frozen
class NotVerified:
    reason: str


@frozen
class Unavailable:
    system: str


@frozen
class StillThere:
    records: int


ErasureFailure: TypeAlias = Withdrawn | Overdue | NotVerified | Unavailable | StillThere
OTHERS = ("crm", "mail", "analytics")


@activity("erasure.verify_identity")
def verify_identity(request: Proof) -> Result[None, NotVerified]: ...


@activity("erasure.delete_from_stripe")
def delete_from_stripe(request: str) -> Result[Erased, Unavailable]: ...


@activity("erasure.delete_from_database")
def delete_from_database(request: str) -> Result[Erased, Unavailable]: ...


@activity("erasure.validate_checkpoint")
def validate_checkpoint(request: str) -> Result[None, StillThere]: ...


@activity("erasure.delete_elsewhere")
def delete_elsewhere(request: Deletion) -> Result[Erased, Unavailable]: ...


@activity("erasure.scan")
def scan(request: str) -> Result[int, Never]: ...


@activity("erasure.certify")
def certify(request: Certify) -> Result[Certificate, Unavailable]: ...


@workflow("erasure.background_scans")
def background_scans(request: Scans) -> Steps[int, Never]:
    return (yield from scan(request.subject))


# The passage, laid out for reading.
# fmt: off

Override: TypeAlias = Hold | Release | Extend | Withdraw
override = signal("erasure-override", Override)             # may come at any time; every arrival is kept, in order

@workflow("erasure.parallel_deletions")
def parallel_deletions(order: Deletions) -> Steps[Tally, Never]:
    outcomes = yield from each_attempt([Deletion(order.subject, system) for system in order.systems],
                                       lambda deletion: delete_elsewhere(deletion).isolate())   # a bug in one adapter stays there too
    failed = [outcome.failure() for outcome in outcomes if isinstance(outcome, Failure)]
    return Tally(len(outcomes) - len(failed), len(failed), order.systems)

@do
def applied(case: Case, order: Override) -> Steps[Case, Withdrawn]:
    yield from audit("ERASURE_OVERRIDE", order)
    if isinstance(order, Withdraw):
        return (yield from fail(Withdrawn(order.approver)))  # `return` tells both checkers that the body ends here
    return case.after(order)                                # a pure fold: due time, held or not

@do
def cleared(case: Case) -> Steps[Case, Withdrawn | Overdue]:
    while True:                                             # held: wait for mail; else take what has come, and go on
        held = override.receive().timeout(case.due, Overdue("the release of a hold"))
        order = (yield from held) if case.held else (yield from override.take())
        if order is None:
            return case
        case = yield from applied(case, order)

@do
def attended(case: Case, child: Child[Tally, Never]) -> Steps[Outcome[Tally, Died], Withdrawn | Overdue]:
    while True:                                             # losing a race ends the waiting, not the child
        news = yield from race(child.join().isolate().attempt(), override.receive()).timeout(case.due, Overdue("the deletions"))
        if isinstance(news, (Success, Failure)):
            return news
        case = yield from applied(case, news)

@workflow("erasure.request", key="{request_id}")
def erasure(request: ErasureRequest) -> Steps[Certificate, ErasureFailure]:
    yield from verify_identity(request.proof)
    case = yield from cleared(Case(due=(yield from execution()).started_at + timedelta(days=30)))
    stripe = yield from delete_from_stripe(request.subject)
    case = yield from cleared(case)
    database = yield from delete_from_database(request.subject)
    yield from validate_checkpoint(request.subject)
    deletions = yield from parallel_deletions.start(Deletions(request.subject, OTHERS))
    yield from audit("PARALLEL_DELETIONS_CHILD_WORKFLOW_SPAWNED", deletions.id)
    outcome = yield from attended(case, deletions)
    yield from background_scans.start(Scans(request.subject), detached=True)
    return (yield from certify(Certify(request.request_id, (stripe, database), outcome)))
