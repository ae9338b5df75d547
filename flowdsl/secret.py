"""Secrets by their names: what is recorded and shown is the name, and only an implementation that uses one gets at its value.

@attrs.frozen
class Sync:
    org: str
    token: Secret

async def fetch(request: Sync) -> Result[Page, Unavailable]:
    token = request.token.reveal()
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Final

from attrs import field, frozen

from flowdsl.errors import FlowError

FOLDER: Final = "FLOWDSL_SECRETS_DIR"
PREFIX: Final = "FLOWDSL_SECRET_"
HIDDEN: Final = "‹secret {}›"
SHORT: Final = 6
"""A value with fewer characters is not looked for in texts: it would be found everywhere."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class SecretMissing(FlowError):
    """There is no secret of that name in this process."""

    def __init__(self, name: str, variable: str, folder: str | None) -> None:
        self.name = name
        also = f", and {folder} has no file {name}" if folder else f", and {FOLDER} names no folder"
        super().__init__(f"there is no secret {name!r} here: {variable} is not set{also}. Set the one, or write the other")


def _named(_: object, __: object, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError("a secret's name has letters, digits, '.', '_' and '-'")


@frozen
class Secret:
    """A secret by its name: may stand in inputs, answers and signals, which hold the name and nothing else."""

    name: str = field(validator=_named)

    def reveal(self) -> str:
        """Its value, now: of FLOWDSL_SECRET_NAME, or of the file of that name in the folder FLOWDSL_SECRETS_DIR. For implementations.

        From then on logs and messages of this process show the name in its place. Raises `SecretMissing`.
        """
        variable = PREFIX + re.sub(r"[^A-Za-z0-9]", "_", self.name).upper()
        value, folder = os.environ.get(variable), os.environ.get(FOLDER)
        if value is None and folder:
            try:
                value = (Path(folder) / self.name).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError):
                value = None
        if value is None:
            raise SecretMissing(self.name, variable, folder)
        _remember(self.name, value)
        return value


_known: dict[str, str] = {}
"""What texts must not show, and by which name it is shown; the longest first, since one may be part of another."""


def _remember(name: str, value: str) -> None:
    lines = [value, *value.splitlines()] if "\n" in value else [value]
    fresh = {form: name for line in lines if len(line) >= SHORT for form in _spelled(line) if form not in _known}
    if fresh:
        together = {**_known, **fresh}
        ordered = {one: together[one] for one in sorted(together, key=len, reverse=True)}
        _known.clear()
        _known.update(ordered)


def _spelled(value: str) -> set[str]:
    """A value as it stands in a text, in JSON, in what Python shows of it, and in JSON of that."""
    shown = repr(value)[1:-1]
    return {form for one in (value, shown) for form in (one, json.dumps(one)[1:-1], json.dumps(one, ensure_ascii=False)[1:-1])}


def concealed(text: str) -> str:
    """A text with the names of secrets in place of the values that were revealed in this process."""
    for value, name in _known.items():
        if value in text:
            text = text.replace(value, HIDDEN.format(name))
    return text


def betrayed(body: bytes) -> str | None:
    """The name of a secret whose value stands in what is to be recorded; None if there is none, as almost always."""
    if not _known:
        return None
    text = body.decode(errors="replace")
    return next((name for value, name in _known.items() if value in text), None)


def concealing(_: object, __: str, event: Any) -> Any:
    """For structlog, before the renderer and behind it: what is logged shows no value that was revealed."""
    return _without(event) if _known else event


def _without(value: Any) -> Any:
    if isinstance(value, str):
        return concealed(value)
    if isinstance(value, dict):
        return {name: _without(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without(one) for one in value]
    return value


__all__ = ["FOLDER", "PREFIX", "Secret", "SecretMissing", "betrayed", "concealed", "concealing"]
