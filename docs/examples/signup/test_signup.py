from hypothesis import given
from signup import Account, SignUp, sign_up

from flowdsl import Success
from flowdsl.testing import worlds


class Cloud:
    def __init__(self):
        self.accounts, self.workspaces = {}, set()

    def create_account(self, order: SignUp):
        account = Account(f"account of {order.email}", order.email, order.company)
        return Success(self.accounts.setdefault(order.email, account))

    def close_account(self, account: Account):
        return Success(self.accounts.pop(account.email, None) and None)

    def create_workspace(self, account: Account):
        self.workspaces.add(account.id)
        return Success(f"https://{account.id}.example.com")


@given(worlds(sign_up, model=Cloud))
def test_whoever_has_signed_up_has_a_workspace(world):
    run = world.run()
    assert not isinstance(run.exit, Success) or run.exit.unwrap().id in world.model.workspaces
