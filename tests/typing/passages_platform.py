"""Platform: a workflow that undoes what it did when it fails, and an inner scope that is rolled back while the workflow goes on."""

from typing import Never, TypeAlias

from attrs import frozen

from flowdsl import (
    Failure,
    Result,
    Retry,
    Steps,
    Success,
    activity,
    each,
    pure,
    saga,
    uuid,
    workflow,
)


@frozen
class Onboard:
    user_email: str
    tenant_id: str
    role: str
    setup_default_workspace: bool
    send_welcome_email: bool


@frozen
class Onboarded:
    account_id: str
    workspace_id: str | None


@frozen
class NewAccount:
    id: str
    email: str


@frozen
class Account:
    id: str
    email: str


@frozen
class Member:
    account_id: str
    tenant_id: str
    role: str


@frozen
class Workspace:
    id: str


@frozen
class Unavailable:
    service: str


@frozen
class Conflict:
    id: str


ServiceFailure: TypeAlias = Unavailable | Conflict


@frozen
class Migrate:
    migration_id: str
    services: tuple[str, ...]


@frozen
class Migrated:
    service: str
    rows: int


@frozen
class MigrationReport:
    parts: tuple[Migrated, ...]
    error: str | None


@activity("platform.create_account")
def create_account(request: NewAccount) -> Result[Account, ServiceFailure]: ...


@activity("platform.delete_account")
def delete_account(request: str) -> Result[None, Unavailable]: ...


@activity("platform.add_member")
def add_member(request: Member) -> Result[Member, Conflict]: ...


@activity("platform.remove_member")
def remove_member(request: Member) -> Result[None, Unavailable]: ...


@activity("platform.create_workspace")
def create_workspace(request: str) -> Result[Workspace, ServiceFailure]: ...


@activity("platform.delete_workspace")
def delete_workspace(request: str) -> Result[None, Unavailable]: ...


@activity("platform.send_welcome")
def send_welcome(request: str) -> Result[None, Unavailable]: ...


@activity("platform.migrate_service")
def migrate_service(request: str) -> Result[Migrated, ServiceFailure]: ...


@activity("platform.roll_back_service")
def roll_back_service(request: str) -> Result[None, Unavailable]: ...


# The passage, laid out for reading.
# fmt: off

@workflow("platform.user_onboarding", key="{user_email}")    # a workflow is a saga: its undos run last-first when it fails or is cancelled
def onboarding(order: Onboard) -> Steps[Onboarded, ServiceFailure]:
    account_id = str((yield from uuid()))
    yield from pure(account_id).compensate(delete_account)   # registered before the call: a lost answer may hide a created account
    account = yield from create_account(NewAccount(account_id, order.user_email))
    yield from add_member(Member(account.id, order.tenant_id, order.role)).compensate(remove_member)
    workspace = None
    if order.setup_default_workspace:
        workspace = yield from create_workspace(account.id).compensate(lambda made: delete_workspace(made.id))
    if order.send_welcome_email:
        yield from send_welcome.using(retry=Retry.constant("5s", attempts=2))(account.id).attempt()   # optional: a failure is let go
    return Onboarded(account.id, workspace.id if workspace else None)

@workflow("platform.data_migration", key="{migration_id}")
def migration(order: Migrate) -> Steps[MigrationReport, Never]:
    moved = each(order.services, lambda name: migrate_service(name).compensate(lambda part: roll_back_service(part.service)), concurrency=4)
    match (yield from saga(moved).attempt()):                # an inner scope: rolled back, and the workflow goes on
        case Success(parts):
            return MigrationReport(tuple(parts), None)
        case Failure(error):
            return MigrationReport((), str(error))
