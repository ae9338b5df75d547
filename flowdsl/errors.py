"""Every exception class of flowdsl. An expected failure is a value in a flow's `E`; what is raised means a bug or an outage."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta


class FlowError(Exception):
    """The root: its message is built from its fields and says what to do next."""


class DefinitionError(FlowError):
    """A workflow, activity, signal or policy that cannot work as it is written; raised on import or when a deployment is put together."""

    def __init__(self, name: str, problem: str, remedy: str) -> None:
        self.name, self.problem, self.remedy = name, problem, remedy
        super().__init__(f"{name}: {problem}. {remedy}")


class DeploymentError(FlowError):
    """All that is missing or doubled in a deployment, at once."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("this deployment cannot run:\n" + "\n".join(f"  - {problem}" for problem in self.problems))


class MachineError(FlowError):
    """The machine was driven wrongly: an answer for a step that is not open."""

    def __init__(self, step: str, problem: str) -> None:
        self.step, self.problem = step, problem
        super().__init__(f"step {step}: {problem}")


class StoreError(FlowError):
    """The database refused, or cannot be reached; nothing was lost. `remedy` says what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem, self.remedy = problem, remedy
        super().__init__(f"{problem}. {remedy}")


class NotFound(FlowError):
    """There is no execution, workflow or deployment of that name."""

    def __init__(self, kind: str, name: str, known: Sequence[str] = ()) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        hint = f" Known: {', '.join(sorted(known)[:20])}." if known else ""
        super().__init__(f"no {kind} named {name!r}.{hint}")


class Rejected(FlowError):
    """A start with a key that is taken, under reuse="reject"."""

    def __init__(self, workflow: str, key: str, execution: str) -> None:
        self.workflow, self.key, self.execution = workflow, key, execution
        super().__init__(f"{workflow}: key {key!r} is taken by execution {execution}; use another key, or another reuse policy")


class TooLarge(FlowError):
    """A value that is too large to be recorded: its size and the limit, in bytes. `Deployment(limits=Limits(...))` sets the limits."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        self.what, self.size, self.limit = what, size, limit
        super().__init__(
            f"{what} has {_bytes(size)}, the limit is {_bytes(limit)}. Keep it elsewhere and pass a reference, or raise the limit: Limits(...)"
        )


class RetryAfter(FlowError):
    """Raised by an implementation: this attempt is a defect, and the next one is to wait at least that long (`"30s"`, or a `timedelta`)."""

    def __init__(self, after: timedelta | str, why: str = "") -> None:
        self.after, self.why = after, why
        super().__init__(f"again after {after}" + (f": {why}" if why else ""))


class GiveUp(FlowError):
    """Raised by an implementation: a defect that no other attempt would mend, so that there is none, whatever the policy says."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


class KeyMissing(StoreError):
    """A payload is encrypted with a key that this process does not have. Nothing is lost: what needs it waits for the key."""

    def __init__(self, key: str, what: str) -> None:
        self.key, self.what = key, what
        super().__init__(
            f"{what} is encrypted with the key {key!r}, which is not here",
            "Add that key to FLOWDSL_ENCRYPTION_KEYS, or to the file that FLOWDSL_ENCRYPTION_KEY_FILE names",
        )


class NotGenuine(StoreError):
    """A payload that no holder of the key wrote for this place: it was changed, or moved here from another row."""

    def __init__(self, key: str, what: str) -> None:
        self.key, self.what = key, what
        super().__init__(
            f"{what} does not open with the key {key!r}: it was changed or moved, or that name stands for another key here",
            "Compare the keys of this process with those of its neighbours; if they are the same, restore the row from a backup",
        )


class EmbeddedPostgresError(StoreError):
    """The embedded server cannot be had: what, why, and what to do."""

    def __init__(self, what: str, why: str, remedy: str) -> None:
        self.what, self.why = what, why
        super().__init__(f"embedded Postgres: {what} ({why})", remedy)


def _bytes(size: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
