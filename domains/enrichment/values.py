"""What goes into the enrichment's workflows and activities, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias

from attrs import evolve, field, frozen, validators

from domains.enrichment.addresses import EmailType

LARGEST: Final = 100
"""What the provider takes in one submission."""

Trigger: TypeAlias = Literal["subscriber", "upload", "schedule", "hand", "more"]

# Orders and what they give


@frozen
class Patience:
    """How long a batch waits, and for what."""

    limit: timedelta = timedelta(hours=24)
    """For final results."""
    poll: timedelta = timedelta(minutes=15)
    """Between two looks at the provider, while it does not call back."""
    silence: timedelta = timedelta(hours=2)
    """When the submission was never answered: until it is made once more."""


@frozen
class EnrichBatch:
    """Claim what is pending, up to `limit`, and see it through. Triggers that name the same window are one, begun at `not_before`."""

    trigger: Trigger = "hand"
    window: str = ""
    not_before: datetime | None = None
    limit: int = field(default=LARGEST, validator=[validators.ge(1), validators.le(LARGEST)])
    patience: Patience = Patience()


@frozen
class Tally:
    """What became of a batch. `status` is the provider's last word. No field has a default: all of them are always written."""

    jobs: int
    enriched: int
    absent: int
    """Asked for, and the provider knows nobody: costs nothing."""
    credits: float
    status: str

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.jobs + other.jobs, self.enriched + other.enriched, self.absent + other.absent, self.credits + other.credits, self.status)


NOTHING = Tally(0, 0, 0, 0.0, "nothing to do")


@frozen
class NewSubscriber:
    email: str
    source: str = "api"
    raw_payload: Mapping[str, str] = field(factory=dict[str, str])


@frozen
class Saved:
    """What became of a subscriber that was told: new, or known already."""

    id: int
    status: Literal["created", "known"]
    email_type: EmailType


@frozen
class Added:
    """`execution` is the enrichment that will take it, if there is one to do."""

    subscriber: Saved
    execution: str | None


@frozen
class Upload:
    """A CSV file with a column `email`, in the folder for uploads. Told again after it has changed, only what is new counts."""

    path: str
    source: str = "upload"


@frozen
class Uploaded:
    created: int
    known: int
    personal: int
    """Of those created."""
    refused: int
    """Rows without an address."""

    def __add__(self, other: Uploaded) -> Uploaded:
        return Uploaded(self.created + other.created, self.known + other.known, self.personal + other.personal, self.refused + other.refused)


# Batches


@frozen
class Claim:
    """`batch_id` is the execution that will see to it: what the provider echoes leads back here."""

    batch_id: str
    trigger: Trigger
    limit: int
    balance: float


@frozen
class Job:
    """One address to ask about."""

    id: int
    email: str


@frozen
class Batch:
    """Claimed jobs, nobody else's. `more`: others are pending; `held_back`: why they must stay so."""

    id: str
    jobs: tuple[Job, ...]
    more: bool = False
    held_back: str | None = None


@frozen
class Part:
    """Some jobs of a batch that was refused as a whole."""

    of: str
    jobs: tuple[Job, ...]
    patience: Patience


@frozen
class ClaimPart:
    batch_id: str
    of: str
    jobs: tuple[Job, ...]


@frozen
class AskCredits:
    """How much credit the provider has for us."""


@frozen
class Credits:
    balance: float


@frozen
class Submitted:
    enrichment_id: str


@frozen
class Registration:
    """The provider's id of a batch, from now until the batch is closed."""

    batch_id: str
    enrichment_id: str


@frozen
class Fetch:
    enrichment_id: str


Closed: TypeAlias = Literal["done", "out of credit", "canceled by the provider", "failed", "cancelled"]


@frozen
class Closing:
    """The end of a batch. What of it is unfinished is failed for that reason; or pending again, where nothing was asked or no credit was left."""

    batch_id: str
    end: Closed
    reason: str | None = None
    passing: bool = False
    """The reason passes: the jobs may be claimed once more, some other time."""


# Results

BatchStatus: TypeAlias = Literal["CREATED", "IN_PROGRESS", "RATE_LIMIT", "FINISHED", "CREDITS_INSUFFICIENT", "CANCELED", "UNKNOWN"]
FINAL: Final = frozenset({"FINISHED", "CREDITS_INSUFFICIENT", "CANCELED"})


@frozen
class Profile:
    """Who it is, as far as the provider knows."""

    full_name: str
    headline: str | None = None
    city: str | None = None
    country: str | None = None
    linkedin_url: str | None = None
    title: str | None = None
    seniority: str | None = None
    company: str | None = None
    company_domain: str | None = None
    headcount: str | None = None
    """A number, or a range where that is all there is."""
    industry: str | None = None


@frozen
class Found:
    """What came back for a job of ours; without a profile nobody was found, or not yet."""

    job: int
    profile: Profile | None


@frozen
class EnrichmentResults:
    """What the provider says of a batch, by a callback or when asked. The payload of `enrichment-complete`."""

    enrichment_id: str
    status: BatchStatus
    results: tuple[Found, ...] = ()
    credits: float = 0.0

    @property
    def final(self) -> bool:
        return self.status in FINAL


@frozen
class Process:
    """Results to be written to the subscribers of that batch."""

    batch_id: str
    news: EnrichmentResults


@frozen
class Written:
    """How many jobs were finished by these results: those that had been finished before do not count."""

    enriched: int
    absent: int


@frozen
class RequestBatch:
    """Something came that is to be enriched."""

    trigger: Trigger


# Uploads, chunk by chunk


@frozen
class ReadChunk:
    """`version`: of the file that was begun with; None before the first chunk."""

    upload: Upload
    offset: int
    version: str | None


@frozen
class Chunk:
    """Rows that were taken in; `next_offset` is None after the last."""

    next_offset: int | None
    version: str
    counted: Uploaded


# The state of the waits: the checkpoints


@frozen
class Watch:
    """Where the wait for a batch's results stands. Without an `enrichment_id` nobody has answered the submission."""

    deadline: datetime
    enrichment_id: str | None
    tally: Tally
    resubmitted: bool = False

    def after(self, news: EnrichmentResults, written: Written) -> Watch:
        tally = evolve(
            self.tally,
            enriched=self.tally.enriched + written.enriched,
            absent=self.tally.absent + written.absent,
            credits=max(self.tally.credits, news.credits),
            status=news.status,
        )
        return evolve(self, enrichment_id=self.enrichment_id or news.enrichment_id, tally=tally)


@frozen
class Position:
    """How far an upload was read."""

    offset: int = 0
    version: str | None = None
    counted: Uploaded = Uploaded(0, 0, 0, 0)
