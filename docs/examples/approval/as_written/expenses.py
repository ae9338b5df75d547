"""An expense is decided by one person, who is reminded twice; after that the team lead is told, and we wait for as long as it takes."""

from typing import Never, TypeAlias

from attrs import frozen

from flowdsl import Result, Steps, Success, activity, do, signal, workflow


@frozen
class Expense:
    id: str
    approver: str
    cents: int


@frozen
class Approved:
    by: str


@frozen
class Refused:
    by: str
    reason: str


Decision: TypeAlias = Approved | Refused
decided = signal("expenses.decided", Decision)


@frozen
class Booking:
    expense: str
    decision: Decision


@activity("expenses.ask")
def ask(expense: Expense) -> Result[None, Never]:
    """Writes to the approver."""
    ...


@activity("expenses.remind")
def remind(expense: Expense) -> Result[None, Never]:
    """Writes to the approver again."""
    ...


@activity("expenses.escalate")
def escalate(expense: Expense) -> Result[None, Never]:
    """Writes to the team lead."""
    ...


@activity("expenses.book", timeout="12h")
def book(booking: Booking) -> Result[None, Never]:
    """Enters a decision into the books, which may be closed for hours."""
    ...


@do
def booked(expense: Expense, decision: Decision) -> Steps[Decision, Never]:
    yield from book(Booking(expense.id, decision))
    return decision


@workflow("expenses.approval", key="{id}")
def approve(expense: Expense) -> Steps[Decision, Never]:
    decision = decided.receive().then(lambda decision: booked(expense, decision))
    yield from ask(expense)
    for prompt in (remind, remind, escalate):
        in_time = yield from decision.timeout("2d").attempt()
        if isinstance(in_time, Success):
            return in_time.unwrap()
        yield from prompt(expense)
    return (yield from decision)
