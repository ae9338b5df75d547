"""Every exception class of flowdsl. An expected failure is a value in a flow's `E`; what is raised means a bug or an outage."""

from __future__ import annotations

from collections.abc import Sequence


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


class EmbeddedPostgresError(StoreError):
    """The embedded server cannot be had: what, why, and what to do."""

    def __init__(self, what: str, why: str, remedy: str) -> None:
        self.what, self.why = what, why
        super().__init__(f"embedded Postgres: {what} ({why})", remedy)
