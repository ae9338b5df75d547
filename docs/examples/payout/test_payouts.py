from hypothesis import given
from payouts import Receipt, Transfer, pay

from flowdsl import Success
from flowdsl.testing import worlds


class Bank:
    def __init__(self):
        self.receipts, self.paid_out = {}, 0

    def transfer(self, order: Transfer):
        if order.reference not in self.receipts:
            self.receipts[order.reference] = Receipt(order.reference)
            self.paid_out += order.cents
        return Success(self.receipts[order.reference])


@given(worlds(pay, model=Bank))
def test_pays_at_most_once(world):
    world.run()
    assert world.model.paid_out in (0, world.request.cents)
