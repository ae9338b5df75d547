"""What a signal may carry: the type that it was declared with, where a workflow of the deployment names it."""

from __future__ import annotations

from functools import cache
from typing import Any

from flowdsl.binding import Deployment, signals_in
from flowdsl.codec import Undecodable, codec
from flowdsl.errors import NotFound

ANY = codec(object)


@cache
def _of_workflow(deployment: Deployment, name: str, version: int) -> dict[str, tuple[Any, ...]]:
    """Of each signal that its body names the types of payload: nearly always one."""
    found: dict[str, tuple[Any, ...]] = {}
    for one in signals_in(deployment.workflow(name, version).body):
        if one.payload not in found.get(one.name, ()):
            found[one.name] = (*found.get(one.name, ()), one.payload)
    return found


@cache
def _of_deployment(deployment: Deployment) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    for name, version in deployment.versions:
        for signal, forms in _of_workflow(deployment, name, version).items():
            found[signal] = (*found.get(signal, ()), *(form for form in forms if form not in found.get(signal, ())))
    return found


def payload_of(deployment: Deployment, signal: str, plain: Any, *, workflow: tuple[str, int] | None = None) -> bytes:
    """A payload as it is recorded. Raises `Undecodable`, with the path of each bad field, when no declaration of the signal takes it.

    `workflow`: the one it is sent to, if that is known. A signal that no body names is taken as it is: it may be made up there as it runs.
    """
    try:
        known = _of_deployment(deployment) if workflow is None else _of_workflow(deployment, *workflow)
    except NotFound:  # an execution that another deployment runs
        known = {}
    refused: Undecodable | None = None
    for form in known.get(signal, ()):
        try:
            return codec(form).encode(codec(form).structure(plain, root="body.payload"))
        except Undecodable as error:
            refused = refused or error
    if refused is not None:
        raise refused
    return ANY.encode(plain)


__all__ = ["payload_of"]
