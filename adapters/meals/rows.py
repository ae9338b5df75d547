"""The three steps of a row."""

from __future__ import annotations

from adapters.meals.client import Answer, CallFailure, ask
from domains.imports.failures import NotInOrder, Refused, UnknownOrder
from domains.imports.values import ProcessMealShort, Reference
from flowdsl import Failure, Result, Success


async def validate_order(request: ProcessMealShort) -> Result[None, UnknownOrder | NotInOrder | CallFailure]:
    def read(answer: Answer) -> Result[None, UnknownOrder | NotInOrder | Refused]:
        match answer.status:
            case 200:
                return Success(None)
            case 404:
                return Failure(UnknownOrder(request.order_id))
            case 422:
                return Failure(NotInOrder(request.order_id, request.sku))
            case status:
                return Failure(Refused("the order is not validated", status, answer.detail))

    return await ask("/v1/orders/check", {"order_id": request.order_id, "sku": request.sku}, read)


async def process(request: Reference) -> Result[None, CallFailure]:
    return await ask("/v1/shorts", _item(request), lambda answer: _taken("the short is refused", answer))


async def send_confirmation(request: Reference) -> Result[None, CallFailure]:
    return await ask("/v1/confirmations", _item(request), lambda answer: _taken("no confirmation is sent", answer))


def _item(request: Reference) -> dict[str, str]:
    return {"reference": request.reference, "order_id": request.row.order_id, "sku": request.row.sku}


def _taken(what: str, answer: Answer) -> Result[None, Refused]:
    """201: done now. 200: it had been done."""
    return Success(None) if answer.status in (200, 201) else Failure(Refused(what, answer.status, answer.detail))
