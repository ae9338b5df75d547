"""Secrets by name: what is recorded is the name, what is shown is the name, and logs quote no values."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import click
import pytest
import structlog
from attrs import frozen

from flowdsl import Defect, Failure, Result, Retry, Secret, Steps, Success, activity, workflow
from flowdsl import secret as secrets
from flowdsl.attempt import raised
from flowdsl.cli import edge
from flowdsl.codec import Undecodable, codec
from flowdsl.errors import KeyMissing, NotFound, StoreError
from flowdsl.postgres.connection import reason, trace
from flowdsl.secret import SecretMissing, concealed
from flowdsl.testing import Fake

VALUE = 'pa"ss\\wörd-77'


@frozen
class Request:
    org: str
    token: Secret


@frozen
class Refused:
    why: str


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    before = dict(secrets._known)
    secrets._known.clear()
    yield
    secrets._known.clear()
    secrets._known.update(before)


@pytest.fixture
def revealed(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FLOWDSL_SECRET_CRM_TOKEN", VALUE)
    return Secret("crm-token").reveal()


class TestSecrets:
    def test_only_the_name_is_written_and_shown(self, revealed: str) -> None:
        request = Request("o", Secret("crm-token"))
        body = codec(Request).encode(request)
        assert body == b'{"org":"o","token":{"name":"crm-token"}}' and codec(Request).decode(body) == request
        assert revealed == VALUE and VALUE not in f"{request} {request!r} {request.token} {request.token!r}"

    def test_from_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(SecretMissing, match=r"FLOWDSL_SECRET_CRM_TOKEN is not set, and FLOWDSL_SECRETS_DIR names no folder"):
            Secret("crm.token").reveal()
        monkeypatch.setenv("FLOWDSL_SECRETS_DIR", str(tmp_path))
        with pytest.raises(SecretMissing, match=r"has no file crm\.token"):
            Secret("crm.token").reveal()
        (tmp_path / "crm.token").write_text("from a file\n")
        assert Secret("crm.token").reveal() == "from a file"
        (tmp_path / "crm.token").write_text("another since")  # read anew at each use: a rotation needs no restart
        assert Secret("crm.token").reveal() == "another since"

    @pytest.mark.parametrize("name", ["", "../etc/passwd", "a/b", ".hidden", "a\0b", "ü"])
    def test_a_name_leads_nowhere_else(self, name: str) -> None:
        with pytest.raises(ValueError, match="a secret's name"):
            Secret(name)
        with pytest.raises(Undecodable):
            codec(Secret).decode(json.dumps({"name": name}).encode())


class TestTexts:
    def test_what_an_implementation_raises(self, revealed: str) -> None:
        for error in (ValueError(f"no {revealed}!"), ExceptionGroup("two", [ValueError(revealed), OSError(revealed)])):
            message = raised(error).exit.message  # type: ignore[union-attr]
            assert VALUE not in message and "‹secret crm-token›" in message

    def test_one_that_is_part_of_another_and_one_that_is_too_short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (("A", "abcdef"), ("B", "abcdefghi"), ("C", "abc")):
            monkeypatch.setenv(f"FLOWDSL_SECRET_{name}", value)
            Secret(name).reveal()
        assert concealed("abcdefghi abcdef abc") == "‹secret B› ‹secret A› abc"


class TestLogs:
    @pytest.fixture
    def logged(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
        """What `--log-json --verbose` writes."""
        written = io.StringIO()
        before, handlers = structlog.get_config(), list(logging.getLogger().handlers)
        monkeypatch.setattr(edge, "_Stderr", lambda: written)
        with click.Context(click.Command("x")) as context:
            context.ensure_object(dict).update(verbose=True, log_json=True)
            edge.begin_logs()
        yield written
        structlog.configure(**before)
        for handler in set(logging.getLogger().handlers) - set(handlers):
            logging.getLogger().removeHandler(handler)

    def test_no_value_of_a_secret(self, logged: io.StringIO, revealed: str) -> None:
        log: Any = structlog.get_logger("flowdsl")
        try:
            raise ValueError(revealed)
        except ValueError:
            log.error(
                "told", text=f"x {revealed}", deep={"a": [revealed, (revealed,)]}, shown=Success(revealed), inner=Success([revealed]), exc_info=True
            )
        line = json.loads(logged.getvalue())
        assert "rd-77" not in logged.getvalue() and line["text"] == "x ‹secret crm-token›", line

    def test_what_libraries_tell_is_told_without_values(self, logged: io.StringIO) -> None:
        value = "jane@example.org"
        try:
            raise ValueError(value)
        except ValueError:
            logging.getLogger("some.library").error("failed for %s\nfuture: jane@example.org", "jane@example.org", exc_info=True)
        logging.getLogger("some.library").info("GET /?mail=jane@example.org")
        (line,) = [json.loads(text) for text in logged.getvalue().splitlines()]
        assert (line["event"], line["library"], line["words"]) == ("library.told", "some.library", "failed for %s")
        assert "jane" not in logged.getvalue() and "ValueError" in line["traceback"] and "test_secret.py" in line["traceback"]

    def test_a_traceback_says_where_and_not_what(self) -> None:
        try:
            try:
                raise KeyError("jane@example.org")
            except KeyError as error:
                raise RuntimeError("for jane@example.org") from error
        except RuntimeError as error:
            text = trace(error)
        lines = text.splitlines()
        assert lines[-1] == "RuntimeError" and "KeyError" in lines and lines.index("KeyError") < lines.index("RuntimeError")
        assert text.count("test_secret.py") == 2

    @pytest.mark.parametrize(
        ("error", "told"),
        [
            (asyncpg.DataError('invalid input syntax for type uuid: "jane@example.org"'), "DataError 22000"),
            (asyncpg.UniqueViolationError("jane"), "UniqueViolationError 23505"),
            (NotFound("execution", "jane@example.org"), "NotFound"),
            (ValueError("jane@example.org"), "ValueError"),
            (ConnectionResetError("Connection lost"), "Connection lost"),
            (TimeoutError(), "TimeoutError"),
            (StoreError("the database is away", "Wait"), "the database is away. Wait"),
            (asyncpg.DeadlockDetectedError("deadlock detected"), "deadlock detected"),
            (KeyMissing("k1", "execution x: its request"), str(KeyMissing("k1", "execution x: its request"))),
        ],
    )
    def test_why_something_failed(self, error: Exception, told: str) -> None:
        assert reason(error) == told


@activity("secrets.fetch", retry=Retry.constant("1s", attempts=1))
def fetch(name: str) -> Result[str, Refused]:
    """Asks with a secret."""


@workflow("secrets.ask")
def ask(name: str) -> Steps[str, Refused]:
    return (yield from fetch(name))


class TestAnswers:
    @pytest.mark.parametrize("answer", [Success, lambda value: Failure(Refused(f"no entry with {value}"))])
    def test_one_that_holds_a_revealed_value_is_not_recorded(self, revealed: str, answer: Any) -> None:
        run = Fake().on(fetch, lambda _: answer(f"with {revealed}")).run(ask, "a")
        assert isinstance(run.exit, Defect) and "the value of 'crm-token'" in run.exit.message and "eturn Secret('crm-token')" in run.exit.message
        assert all(VALUE not in entry.body.decode() and json.dumps(VALUE)[1:-1] not in entry.body.decode() for entry in run.journal)

    def test_one_that_holds_its_name_is(self, revealed: str) -> None:
        assert Fake().on(fetch, Success("crm-token")).run(ask, "a").exit == Success("crm-token")
