"""Pays a seller. The bank answers within seconds, or not at all: then nobody knows whether the money went out."""

from typing import Never

from attrs import frozen

from flowdsl import Result, Retry, Steps, TimedOut, activity, do, workflow


@frozen
class Payout:
    id: str
    account: str
    cents: int


@frozen
class Transfer:
    """What the bank is told. Of one reference it carries out the first and answers all others with the same receipt."""

    reference: str
    account: str
    cents: int


@frozen
class Receipt:
    reference: str


@frozen
class AccountClosed:
    account: str


@activity("payouts.transfer", timeout="30s", retry=Retry.constant("5s", attempts=1))
def transfer(order: Transfer) -> Result[Receipt, AccountClosed | TimedOut]:
    """Sends money."""
    ...


@activity("payouts.mark_paid")
def mark_paid(payout: str) -> Result[None, Never]:
    """Shows the seller that the money is on its way."""
    ...


@do
def sent(payout: Payout) -> Steps[Receipt, AccountClosed | TimedOut]:
    return (yield from transfer(Transfer(payout.id, payout.account, payout.cents)))


@workflow("payouts.pay", key="{id}")
def pay(payout: Payout) -> Steps[Receipt, AccountClosed | TimedOut]:
    receipt = yield from sent(payout).retry(Retry.exponential("1m", attempts=4, on=(TimedOut,)))
    yield from mark_paid(payout.id)
    return receipt
