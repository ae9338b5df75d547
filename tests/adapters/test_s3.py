"""Files over the real API of S3, and on disk: ranges of one version, whatever the file holds; what goes wrong, in words; the error file."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from adapters.s3 import reading, store
from adapters.s3.reading import inspect_file, read_rows
from adapters.s3.reports import clear_parts, publish_errors, write_errors
from adapters.standins.listening import serve
from domains.imports.failures import BadAddress, Denied, FileChanged, NotConfigured, NotFound, Unavailable, Unreadable
from domains.imports.table import LONGEST
from domains.imports.values import Chunk, ProcessMealShortsCsv, ReadRows, Report, RowError, SourceFile, WriteErrors
from flowdsl import Failure, Success
from tests.adapters.storage import Storage, s3_server, storage

__all__ = ["s3_server", "storage"]


async def inspected(url: str) -> SourceFile:
    found = await inspect_file(ProcessMealShortsCsv(url))
    assert isinstance(found, Success), found
    return found.unwrap()


async def why_not(url: str) -> Any:
    found = await inspect_file(ProcessMealShortsCsv(url))
    assert isinstance(found, Failure), found
    return found.failure()


async def chunks(file: SourceFile, rows: int) -> list[Chunk]:
    found = [await read(file, file.offset, file.line, rows)]
    while not found[-1].last:
        found.append(await read(file, found[-1].offset, found[-1].line, rows))
    return found


async def read(file: SourceFile, offset: int, line: int, rows: int) -> Chunk:
    answer = await read_rows(ReadRows(file, offset, line, rows))
    assert isinstance(answer, Success), answer
    return answer.unwrap()


def names(found: list[Chunk]) -> list[str]:
    return [row.short.order_id for chunk in found for row in chunk.rows]


OUTSIDE = "/etc/passwd"
FILE = b"\xef\xbb\xbforder_id,sku,note\r\n" + b"".join(b'%d,A,"one\r\ntwo"\r\n' % number for number in range(100))


# Reading


@pytest.mark.shows("S3.33")
@pytest.mark.parametrize("block", [7, 64, 128 * 1024])
async def test_a_file_is_read_chunk_by_chunk_whatever_a_block_holds(storage: Storage, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK", block)
    file = await inspected(storage.put(FILE))
    assert (file.offset, file.line, file.size) == (22, 2, len(FILE))
    found = await chunks(file, 13)
    assert names(found) == [str(number) for number in range(100)]
    assert [len(chunk.rows) for chunk in found] == [13] * 7 + [9]
    assert [chunk.rows[0].line for chunk in found][:3] == [2, 28, 54]


async def test_a_file_on_disk_is_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shorts of today.csv").write_bytes(FILE)
    monkeypatch.setenv("IMPORTS_FOLDER", str(tmp_path))
    file = await inspected(f"file://{tmp_path}/shorts%20of%20today.csv")
    assert names(await chunks(file, 40)) == [str(number) for number in range(100)]


async def test_a_huge_line_is_passed_over(storage: Storage) -> None:
    file = await inspected(storage.put(b"order_id,sku\n1,A\n2," + b"x" * (5 * LONGEST) + b"\n3,C\n"))
    found = await chunks(file, 2)
    assert names(found) == ["1", "3"]
    assert [(one.line, one.error.split(":")[0]) for chunk in found for one in chunk.bad] == [(3, f"longer than {LONGEST:,} bytes")]


async def test_a_huge_line_at_the_end_is_passed_over(storage: Storage) -> None:
    file = await inspected(storage.put(b"order_id,sku\n1,A\n2," + b"x" * (3 * LONGEST)))
    (found,) = await chunks(file, 100)
    assert (names([found]), len(found.bad), found.last, found.offset) == (["1"], 1, True, file.size)


async def test_a_header_and_nothing_else(storage: Storage) -> None:
    assert await chunks(await inspected(storage.put(b"order_id,sku")), 10) == [Chunk((), (), 12, 2, True)]


# A file that changes between two reads


async def test_a_file_that_was_replaced_is_not_read_on(storage: Storage) -> None:
    file = await inspected(storage.put(FILE))
    first = await read(file, file.offset, file.line, 10)
    storage.put(FILE.replace(b",A,", b",B,"))
    assert await read_rows(ReadRows(file, first.offset, first.line, 10)) == Failure(FileChanged(file.url, first.line))
    assert (await inspected(file.url)).etag != file.etag


async def test_a_file_that_is_gone_was_replaced_too(storage: Storage) -> None:
    file = await inspected(storage.put(FILE))
    first = await read(file, file.offset, file.line, 10)
    storage.delete(file.url)
    assert await read_rows(ReadRows(file, first.offset, first.line, 10)) == Failure(FileChanged(file.url, first.line))


async def test_where_versions_are_kept_the_old_one_is_read_to_its_end(storage: Storage) -> None:
    storage.keep_versions()
    file = await inspected(storage.put(FILE))
    assert file.version
    storage.put(b"order_id,sku\n9,Z\n")
    assert len(names(await chunks(file, 30))) == 100


async def test_a_file_on_disk_that_was_replaced_is_not_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPORTS_FOLDER", str(tmp_path))
    (tmp_path / "f.csv").write_bytes(FILE)
    file = await inspected(f"file://{tmp_path}/f.csv")
    (tmp_path / "new").write_bytes(FILE)
    os.replace(tmp_path / "new", tmp_path / "f.csv")
    assert await read_rows(ReadRows(file, file.offset, file.line, 10)) == Failure(FileChanged(file.url, 2))


# What goes wrong


async def test_what_is_not_there_is_told(storage: Storage) -> None:
    assert await why_not(storage.url) == NotFound(storage.url)
    assert isinstance(await why_not("s3://no-such-bucket/x.csv"), NotFound)


async def test_an_empty_file_is_told(storage: Storage) -> None:
    assert isinstance(await why_not(storage.put(b"")), Unreadable)


async def test_no_file_of_the_machine_is_read_unless_a_folder_is_named(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = await why_not(f"file://{OUTSIDE}")
    assert isinstance(told, NotConfigured) and "IMPORTS_FOLDER" in str(told)
    monkeypatch.setenv("IMPORTS_FOLDER", str(tmp_path))
    assert isinstance(await why_not(f"file://{OUTSIDE}"), BadAddress)
    (tmp_path / "link.csv").symlink_to(OUTSIDE)
    assert isinstance(await why_not(f"file://{tmp_path}/link.csv"), BadAddress)
    assert isinstance(await why_not(f"file://{tmp_path}/none.csv"), NotFound)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(403, "AccessDenied", Denied), (503, "SlowDown", Unavailable), (500, "InternalError", Unavailable), (301, "PermanentRedirect", NotConfigured)],
)
async def test_what_s3_says_is_translated(storage: Storage, monkeypatch: pytest.MonkeyPatch, status: int, code: str, kind: type) -> None:
    async def refusing(_: Request) -> Response:
        return Response(f"<Error><Code>{code}</Code></Error>", status)

    with serve(Starlette(routes=[Route("/{path:path}", refusing, methods=["GET", "HEAD"])])) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        assert isinstance(await why_not("s3://kitchen/x.csv"), kind)


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("denied", Denied),
        ("broken", Unavailable),
        ("slow down", Unavailable),
        ("cut", Unavailable),
        ("stuck", Unavailable),
        ("too short", Unavailable),
        ("gone", FileChanged),
        ("replaced", FileChanged),
    ],
)
async def test_what_goes_wrong_in_the_middle_of_a_file(monkeypatch: pytest.MonkeyPatch, what: str, kind: type) -> None:
    """Of what was read before, nothing is lost: the chunk that fails is asked for again, or the import ends and says why."""
    monkeypatch.setattr(reading, "BLOCK", 64)
    refusals = {"denied": (403, "AccessDenied"), "broken": (500, "InternalError"), "slow down": (503, "SlowDown"), "gone": (404, "NoSuchKey")}
    refusals["replaced"] = (412, "PreconditionFailed")
    bad = False

    async def answer(request: Request) -> Response:
        first, last = map(int, request.headers.get("range", f"bytes=0-{len(FILE) - 1}").removeprefix("bytes=").split("-"))
        body = FILE[first : last + 1]
        headers = {"etag": '"one"', "last-modified": "Wed, 04 Jun 2025 00:00:00 GMT", "content-range": f"bytes {first}-{last}/{len(FILE)}"}
        if request.method == "HEAD":
            return Response(headers={**headers, "content-length": str(len(FILE))})
        if bad and what in refusals:
            return Response(f"<Error><Code>{refusals[what][1]}</Code></Error>", refusals[what][0])
        body = body[:9] if bad and what == "too short" else body
        return Stopping(body, 206, headers, cut=bad and what == "cut", stuck=bad and what == "stuck")

    with serve(Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "HEAD"])])) as url:
        for name, value in {"AWS_ENDPOINT_URL_S3": url, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}.items():
            monkeypatch.setenv(name, value)
        file = await inspected("s3://kitchen/x.csv")
        first = await read(file, file.offset, file.line, 2)
        bad = True
        with patience(monkeypatch, timedelta(milliseconds=300) if what == "stuck" else store.TIMEOUT):
            failure = (await read_rows(ReadRows(file, first.offset, first.line, 2))).failure()
        assert isinstance(failure, kind), failure
        bad = False
        assert names([first, await read(file, first.offset, first.line, 2)]) == ["0", "1", "2", "3"]


@contextmanager
def patience(monkeypatch: pytest.MonkeyPatch, timeout: timedelta) -> Generator[None]:
    """For one request alone: a busy machine may be slow with every other."""
    with monkeypatch.context() as patch:
        patch.setattr(store, "TIMEOUT", timeout)
        store._stores.clear()
        yield
    store._stores.clear()


class Stopping(Response):
    """An answer that may break off in its middle, or go no further."""

    def __init__(self, body: bytes, status: int, headers: dict[str, str], *, cut: bool, stuck: bool) -> None:
        super().__init__(body, status, headers)
        self._cut, self._stuck = cut, stuck

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not (self._cut or self._stuck):
            return await super().__call__(scope, receive, send)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": bytes(self.body[:9]), "more_body": True})
        while self._stuck and (await receive())["type"] != "http.disconnect":
            pass


async def test_a_storage_that_is_away_is_worth_another_try(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    assert isinstance(await why_not("s3://kitchen/x.csv"), Unavailable)


async def test_an_endpoint_that_is_none_is_told(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "localhost:9000")
    assert "AWS_ENDPOINT_URL_S3" in str(await why_not("s3://kitchen/x.csv"))


# The error file


@pytest.mark.parametrize("where", ["s3", "disk"])
async def test_the_error_file_is_put_together_from_its_parts(storage: Storage, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPORTS_FOLDER", str(tmp_path))
    url = storage.put(FILE) if where == "s3" else f"file://{tmp_path}/shorts.csv"
    report = Report(url, "run-1")
    for offset, order_id in ((9_000, "3"), (23, "1"), (9_000, "3")):  # the last again, as after a crash
        assert await write_errors(WriteErrors(url, "run-1", offset, (RowError(7, order_id, "A,B", 'no "such" order'),))) == Success(None)
    await write_errors(WriteErrors(url, "run-0", 23, (RowError(1, "0", "", "of another run"),)))
    published = await publish_errors(report)
    assert await publish_errors(report) == published  # a crash before its entry: done again, the same comes out
    content = storage.get(published.unwrap()) if where == "s3" else (tmp_path / "shorts.errors.csv").read_bytes()
    assert content.decode().splitlines() == ["line,order_id,sku,error", '7,1,"A,B","no ""such"" order"', '7,3,"A,B","no ""such"" order"']
    assert await clear_parts(report) == await clear_parts(report) == Success(None)
    if where == "s3":
        assert [key for key in storage.listed() if "run-1" in key] == []
    else:
        assert set(os.listdir(tmp_path)) == {"shorts.errors.csv", "shorts.errors-run-0"}


async def test_with_no_errors_the_file_says_so(storage: Storage) -> None:
    published = await publish_errors(Report(storage.url, "run-1"))
    assert storage.get(published.unwrap()) == b"line,order_id,sku,error\n"
    assert await clear_parts(Report(storage.url, "run-1")) == Success(None)
