"""How an import, and how a single row, may fail. Each failure says in one sentence what happened and, where a person must act, what to do."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeAlias

from attrs import frozen

# The file


@frozen
class BadAddress:
    """An address that names no file which may be imported."""

    url: str
    problem: str

    def __str__(self) -> str:
        return f"{self.url!r} {self.problem}. Write s3://bucket/key, the file's https address at S3, or file:// and a file's absolute path"


@frozen
class NotConfigured:
    """A setting is missing or unusable."""

    setting: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.setting} {self.problem}. {self.remedy}"


@frozen
class NotFound:
    """There is no such file, or no such bucket."""

    url: str

    def __str__(self) -> str:
        return f"{self.url} is not there. Check the address, then start the import again"


@frozen
class Denied:
    """The storage lets us not read, or not write, there."""

    url: str
    detail: str

    def __str__(self) -> str:
        return f"{self.url}: access refused ({self.detail}). Check the credential, and what it may read and write"


@frozen
class Unreadable:
    """The file is no CSV file that can be imported."""

    url: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.url}: {self.problem}. {self.remedy}"


@frozen
class FileChanged:
    """The file is no longer the one that the import began with."""

    url: str
    line: int

    def __str__(self) -> str:
        return (
            f"{self.url} was replaced or removed while it was read (before line {self.line}). Start the import again: rows that are done are skipped"
        )


@frozen
class Unavailable:
    """The other side did not answer, or answered with a fault of its own; worth another try."""

    what: str
    status: int | None = None
    retry_after: timedelta | None = None

    def __str__(self) -> str:
        return f"{self.what}: answered with {self.status}" if self.status else self.what


StorageFailure: TypeAlias = BadAddress | NotConfigured | NotFound | Denied | Unavailable
InspectFailure: TypeAlias = StorageFailure | Unreadable
ReadFailure: TypeAlias = StorageFailure | FileChanged
ImportFailure: TypeAlias = InspectFailure | FileChanged


# A row


@frozen
class UnknownOrder:
    """The order service knows no such order."""

    order_id: str

    def __str__(self) -> str:
        return f"there is no order {self.order_id}"


@frozen
class NotInOrder:
    """The order does not hold that article."""

    order_id: str
    sku: str

    def __str__(self) -> str:
        return f"order {self.order_id} has no {self.sku}"


@frozen
class Refused:
    """A request that the service will never take."""

    what: str
    status: int
    detail: str

    def __str__(self) -> str:
        return f"{self.what}: {self.detail}" if self.detail else f"{self.what}: refused with {self.status}"


RowFailure: TypeAlias = UnknownOrder | NotInOrder | Refused | Unavailable | NotConfigured
