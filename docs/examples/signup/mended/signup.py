"""A customer signs up. The workspace takes a minute to make, so it is made by a workflow of its own, beside the welcome."""

from typing import Never

from attrs import frozen

from flowdsl import Result, Retry, Steps, activity, workflow


@frozen
class SignUp:
    email: str
    company: str


@frozen
class Account:
    id: str
    email: str
    company: str


@frozen
class EmailTaken:
    email: str


@frozen
class NoCapacity:
    region: str


@activity("signup.create_account")
def create_account(order: SignUp) -> Result[Account, EmailTaken]:
    """Makes the account, once per address."""
    ...


@activity("signup.close_account")
def close_account(account: Account) -> Result[None, Never]:
    """Takes an account back."""
    ...


@activity("signup.create_workspace", retry=Retry.exponential("10s", attempts=3, on=(NoCapacity,)))
def create_workspace(account: Account) -> Result[str, NoCapacity]:
    """Makes the workspace of an account, once. Answers its address."""
    ...


@activity("signup.send_welcome")
def send_welcome(account: Account) -> Result[None, Never]:
    """Tells the customer where to log in."""
    ...


@workflow("signup.workspace", key="{id}")
def make_workspace(account: Account) -> Steps[str, NoCapacity]:
    return (yield from create_workspace(account))


@workflow("signup.customer", key="{email}")
def sign_up(order: SignUp) -> Steps[Account, EmailTaken | NoCapacity]:
    account = yield from create_account(order).compensate(close_account)
    workspace = yield from make_workspace.start(account)
    yield from send_welcome(account)
    yield from workspace.join()
    return account
