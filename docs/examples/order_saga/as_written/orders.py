"""An order: stock is put aside, the card is charged, the parcel goes out. What fails late takes back what came before."""

from typing import Never

from attrs import frozen

from flowdsl import Result, Retry, Steps, activity, pure, workflow


@frozen
class Order:
    id: str
    sku: str
    cents: int


@frozen
class OutOfStock:
    sku: str


@frozen
class CardDeclined:
    reason: str


@frozen
class NoCarrier:
    """Nobody delivers there today."""

    order: str


@frozen
class CarrierDown:
    status: int


@activity("orders.reserve")
def reserve(order: Order) -> Result[None, OutOfStock]:
    """Puts the goods of an order aside, once per order."""
    ...


@activity("orders.release")
def release(order: str) -> Result[None, Never]:
    """Gives back what was put aside for an order, if anything was."""
    ...


@activity("orders.charge")
def charge(order: Order) -> Result[None, CardDeclined]:
    """Takes the money, once per order."""
    ...


@activity("orders.refund")
def refund(order: str) -> Result[None, Never]:
    """Gives the money of an order back, if any was taken."""
    ...


@activity("orders.ship", retry=Retry.exponential("1m", attempts=3, on=(CarrierDown,)))
def ship(order: Order) -> Result[str, NoCarrier | CarrierDown]:
    """Hands the parcel over. Answers its tracking number."""
    ...


@workflow("orders.order", key="{id}")
def place_order(order: Order) -> Steps[str, OutOfStock | CardDeclined | NoCarrier | CarrierDown]:
    # Each undo comes before its step: when the answer is lost, the goods may be put aside all the same.
    yield from pure(order.id).compensate(release)
    yield from reserve(order)
    yield from charge(order)
    return (yield from ship(order))
