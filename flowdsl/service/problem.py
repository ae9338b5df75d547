"""What went wrong, as `application/problem+json`: what, where, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus

from attrs import frozen
from starlette.responses import Response

from flowdsl.codec import Undecodable, codec
from flowdsl.errors import FlowError, NotFound, Rejected, StoreError, TooLarge

MEDIA_TYPE = "application/problem+json"
MOST = 100
"""Bad fields that are named."""


@frozen
class BadField:
    """A field that does not fit: the path to it, and what was expected and what came."""

    path: str
    problem: str


@frozen
class ProblemDetails:
    """What went wrong (RFC 9457). `state`: of the execution that the request was about, when that is why."""

    type: str
    title: str
    status: int
    detail: str
    errors: tuple[BadField, ...] = ()
    execution: str | None = None
    state: str | None = None


_DETAILS = codec(ProblemDetails)


class Problem(FlowError):
    """A request that is not answered as it was meant."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        errors: Sequence[tuple[str, str]] = (),
        execution: str | None = None,
        state: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.title, self.detail, self.errors = status, title, detail, tuple(errors)
        self.execution, self.state, self.headers = execution, state, dict(headers or {})
        super().__init__(f"{status} {title}: {detail}")

    def response(self) -> Response:
        """As it is sent."""
        errors = tuple(BadField(path, problem) for path, problem in self.errors[:MOST])
        details = ProblemDetails("about:blank", _plain(self.title), self.status, _plain(self.detail), errors, self.execution, self.state)
        headers = {"Cache-Control": "no-store", **self.headers}
        return Response(_DETAILS.encode(details), self.status, headers, MEDIA_TYPE)


def _plain(text: str) -> str:
    """Half of a surrogate pair cannot be sent, and nobody needs more than 4 KiB."""
    return text[:4096].encode("utf-8", "backslashreplace").decode()


def of_status(status: int, detail: str = "", headers: Mapping[str, str] | None = None) -> Problem:
    """A problem that needs no more words than HTTP's own."""
    return Problem(status, HTTPStatus(status).phrase.lower(), detail or HTTPStatus(status).description, headers=headers)


def invalid(errors: Sequence[tuple[str, str]], detail: str = "Correct these fields and send it again.") -> Problem:
    """What was sent does not fit its type."""
    return Problem(422, "does not fit", detail, errors=errors)


def busy(detail: str, seconds: int = 5) -> Problem:
    """The store is away: whether it was done is unknown."""
    return Problem(503, "not available", detail, headers={"Retry-After": str(seconds)})


def of_error(error: FlowError) -> Problem:
    """One of ours, told to who asked."""
    match error:
        case Problem():
            return error
        case Undecodable():
            return invalid(error.problems)
        case NotFound():
            return Problem(404, f"no such {error.kind}", str(error))
        case Rejected():
            return Problem(409, "key taken", str(error), execution=error.execution)
        case TooLarge():
            return Problem(413, "too large", str(error))
        case StoreError():
            return busy(error.problem)
        case _:
            return Problem(422, "refused", str(error))


__all__ = ["MEDIA_TYPE", "BadField", "Problem", "ProblemDetails", "busy", "invalid", "of_error", "of_status"]
