"""How an enrichment may fail. Each failure says in one sentence what happened and, where a person must act, what to do."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeAlias

from attrs import frozen

from flowdsl import Interrupted


@frozen
class Unavailable:
    """The provider answered with a fault of its own, or could not be reached at all: the request was not taken; worth another try."""

    what: str
    status: int | None = None

    def __str__(self) -> str:
        return f"{self.what}: FullEnrich answered {self.status}" if self.status else self.what


@frozen
class RateLimited:
    """Too many requests. The provider names no time; `retry_after` is what its text asks for."""

    retry_after: timedelta

    def __str__(self) -> str:
        return f"FullEnrich takes no more requests for now; again in {self.retry_after.total_seconds():g} s"


@frozen
class Unanswered:
    """The request went out and no answer came: it may have been taken. To submit again at once could pay twice."""

    what: str

    def __str__(self) -> str:
        return f"{self.what}: no answer; whether it was taken is not known"


@frozen
class Refused:
    """A request that the provider will never take. `code` names what is wrong, and never in which row."""

    status: int
    code: str
    message: str

    @property
    def whatever_the_rows(self) -> bool:
        """Whether it says something of what every batch of ours has in common, so that other rows would be refused too."""
        return any(part in self.code for part in (".name.", ".data.", ".provider.", ".webhook_url", ".custom."))

    def __str__(self) -> str:
        return f"FullEnrich refused it with {self.status} {self.code}: {self.message}"


@frozen
class Unauthorized:
    """The API key was refused."""

    code: str

    def __str__(self) -> str:
        return f"FullEnrich refused the API key ({self.code}). Check FULLENRICH_API_KEY"


@frozen
class Unexpected:
    """An answer that is not as documented: to ask again would bring the same."""

    what: str
    problem: str

    def __str__(self) -> str:
        return f"{self.what}: the answer is not as documented: {self.problem}"


@frozen
class NotFound:
    """The provider knows no batch of this id: it keeps them for about three months."""

    enrichment_id: str

    def __str__(self) -> str:
        return f"FullEnrich knows no batch {self.enrichment_id}"


@frozen
class NotConfigured:
    """A setting is missing or unusable."""

    setting: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.setting} {self.problem}. {self.remedy}"


@frozen
class Expired:
    """The time for results is over, and the last look found the batch unfinished."""

    batch_id: str

    def __str__(self) -> str:
        return f"expired: no final results of batch {self.batch_id} came in time. Its jobs are failed; make them pending to ask anew"


@frozen
class NotAnAddress:
    """What was given as an address is none."""

    given: str

    def __str__(self) -> str:
        return f"{self.given!r} is no e-mail address"


@frozen
class Unreadable:
    """An upload that cannot be read, or is no list of subscribers."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path} cannot be read: {self.problem}"


AskFailure: TypeAlias = Unavailable | RateLimited | Unauthorized | Unexpected | NotConfigured
FetchFailure: TypeAlias = AskFailure | NotFound | Refused
Rejection: TypeAlias = AskFailure | Refused
"""Why a submission was not taken, for sure."""
Uncertain: TypeAlias = Unanswered | Interrupted
SubmitFailure: TypeAlias = Rejection | Unanswered | Interrupted
BatchFailure: TypeAlias = Rejection | Expired
