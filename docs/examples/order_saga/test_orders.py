from hypothesis import given
from orders import Order, place_order

from flowdsl import Success
from flowdsl.testing import worlds


class Shop:
    def __init__(self):
        self.reserved, self.paid = set(), set()

    def reserve(self, order: Order):
        return Success(self.reserved.add(order.id))

    def release(self, order: str):
        return Success(self.reserved.discard(order))

    def charge(self, order: Order):
        return Success(self.paid.add(order.id))

    def refund(self, order: str):
        return Success(self.paid.discard(order))


@given(worlds(place_order, model=Shop))
def test_nobody_pays_for_what_is_not_sent(world):
    run = world.run()
    assert isinstance(run.exit, Success) or not (world.model.paid or world.model.reserved)
