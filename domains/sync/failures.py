"""How a sync may fail. Each failure says in one sentence what happened and, where a person must act, what to do."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeAlias

from attrs import frozen


@frozen
class Unavailable:
    """The source did not answer, or answered with a fault of its own; worth another try."""

    what: str
    status: int | None = None
    retry_after: timedelta | None = None

    def __str__(self) -> str:
        return f"{self.what}: the source answered {self.status}" if self.status else self.what


@frozen
class RateLimited:
    """The source's quota is used up; `retry_after` is what the source, or our own shared budget, asks for."""

    retry_after: timedelta | None = None

    def __str__(self) -> str:
        return "the source's request quota is used up" + (f"; free again in {self.retry_after.total_seconds():g} s" if self.retry_after else "")


@frozen
class Malformed:
    """An answer that cannot be read, such as JSON cut short; worth another try."""

    what: str

    def __str__(self) -> str:
        return f"{self.what}: the answer cannot be read"


@frozen
class Unexpected:
    """An answer that can be read and is not as documented: to ask again would bring the same."""

    what: str
    problem: str

    def __str__(self) -> str:
        return f"{self.what}: the answer is not as documented: {self.problem}"


@frozen
class Unauthorized:
    """The credential was refused: `hint` is the source's own word for why."""

    status: int
    hint: str
    remedy: str

    def __str__(self) -> str:
        return f"the source refused the credential ({self.status}{f' {self.hint}' if self.hint else ''}). {self.remedy}"


@frozen
class Refused:
    """A request that the source will never take; a fault of the manifest or the adapter."""

    what: str
    status: int
    detail: str

    def __str__(self) -> str:
        return f"{self.what}: refused with {self.status}: {self.detail}"


@frozen
class NotFound:
    """There is no such address at the source."""

    what: str

    def __str__(self) -> str:
        return f"{self.what}: the source knows no such address. Check the source's URL, and the manifest's paths"


@frozen
class NotConfigured:
    """A setting is missing or unusable."""

    setting: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.setting} {self.problem}. {self.remedy}"


@frozen
class Unreachable:
    """The source could not be reached at all, before anything was begun."""

    url: str
    problem: str

    def __str__(self) -> str:
        return f"{self.url} cannot be reached ({self.problem}). Check the URL, and that the source is running"


@frozen
class UnknownAdapter:
    """No manifest of that name."""

    adapter_name: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        return f"there is no adapter {self.adapter_name!r}. Known: {', '.join(self.known)}"


@frozen
class UnknownEntity:
    """The manifest has no entity of that name."""

    entity_name: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        return f"there is no entity {self.entity_name!r}. Known: {', '.join(self.known)}"


@frozen
class UnbreakableCycle:
    """Entities that need each other, none of which may be loaded first and linked later."""

    entities: tuple[str, ...]

    def __str__(self) -> str:
        return f"a cycle of hard dependencies: {' → '.join(self.entities)}. Mark one of these relationships linked_later in the manifest"


@frozen
class UnknownTarget:
    """A relationship that points at an entity which the manifest lacks."""

    entity_name: str
    relationship: str
    target: str

    def __str__(self) -> str:
        return f"{self.entity_name}.{self.relationship} points at {self.target!r}, which the manifest does not describe. Add it, or correct the name"


PlanFault: TypeAlias = UnbreakableCycle | UnknownTarget
SourceFailure: TypeAlias = Unavailable | RateLimited | Malformed | Unexpected | Unauthorized | Refused | NotFound | NotConfigured
EntityFailure: TypeAlias = SourceFailure | UnknownAdapter | UnknownEntity
CheckFailure: TypeAlias = Unreachable | Unauthorized | NotConfigured | NotFound | Refused | Unexpected
MainFailure: TypeAlias = PlanFault | UnknownAdapter | CheckFailure
