"""CSV files of subscribers, read in chunks: a chunk's rows and the place where the next one begins are one transaction."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from attrs import frozen

from adapters.enrichment_store import insert_subscribers
from adapters.fullenrich.settings import UPLOADS, ways
from domains.enrichment.addresses import email_type, normal
from domains.enrichment.failures import Unreadable
from domains.enrichment.values import Chunk, ReadChunk, Uploaded
from flowdsl import Failure, Result, Success, this_attempt

ROWS = 500
LONGEST = 1 << 16
"""Bytes of a line: more is no list of subscribers."""
_UTF8 = "Save it as CSV UTF-8"
_COLUMN = "Its first line names the columns, `email` among them"
_KINDS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"), (b"\x1f\x8b", "compressed"), (b"PK\x03\x04", "a ZIP archive or a spreadsheet"))


class Unfit(Exception):
    """What is wrong with a file, and what to do about it."""


@frozen
class Rows:
    columns: tuple[str, ...]
    rows: list[list[str]]
    following: int | None
    """Where the next chunk begins."""


async def read_upload(request: ReadChunk) -> Result[Chunk, Unreadable]:
    path = request.upload.path
    try:
        with _found(path).open("rb") as file:
            version = _version(file)
            if request.version not in (None, version):
                raise Unfit("it was replaced while it was read. Upload it again: who is known already is not asked about twice")
            read = _chunk(file, request.offset)
    except (OSError, Unfit) as error:
        return Failure(Unreadable(path, getattr(error, "strerror", None) or str(error)))
    payloads: dict[str, dict[str, str]] = {}
    refused = 0
    for row in read.rows:
        told = dict(zip(read.columns, row, strict=False))
        address = normal(told.get("email", ""))
        refused += address is None
        if address is not None:
            payloads.setdefault(address, told)
    async with this_attempt().transaction() as connection:
        created = await insert_subscribers(connection, payloads, request.upload.source)
    personal = sum(email_type(one) == "personal" for one in created)
    return Success(Chunk(read.following, version, Uploaded(len(created), len(read.rows) - refused - len(created), personal, refused)))


def _found(path: str) -> Path:
    """A file within the folder for uploads, whatever the path says."""
    folder = ways().uploads.resolve()
    try:
        found = (folder / path).resolve()
    except ValueError:
        raise Unfit("its name is none") from None
    if not found.is_relative_to(folder):
        raise Unfit(f"it is not in the folder that {UPLOADS} names")
    if found.exists() and not found.is_file():
        raise Unfit("it is no file")
    return found


def _version(file: BinaryIO) -> str:
    status = os.fstat(file.fileno())
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def _chunk(file: BinaryIO, offset: int) -> Rows:
    """The rows from an offset on, which is 0 or a `following`. They may hold line ends within quotes."""
    start = file.read(4)
    kind = next((kind for magic, kind in _KINDS if start.startswith(magic)), None)
    if kind is not None:
        raise Unfit(f"it is {kind}. {_UTF8}")
    file.seek(0)
    first = next(_lines(file), "")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(_lines(file, offset), delimiter=delimiter, strict=True)
    try:
        columns = tuple(name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter, strict=True), []))
        if "email" not in columns:
            raise Unfit(f"its first line names no column `email`. {_COLUMN}")
        if offset == 0:
            next(reader)
        rows: list[list[str]] = []
        for row in reader:
            if row:
                rows.append(row)
            if len(rows) == ROWS:
                return Rows(columns, rows, file.tell())
    except csv.Error as error:
        raise Unfit(f"a quote is in the wrong place, or never closed ({error}), at line {_line(file, offset, reader.line_num)}") from None
    return Rows(columns, rows, None)


def _lines(file: BinaryIO, offset: int = 0) -> Iterator[str]:
    file.seek(offset)
    number = 0
    while line := file.readline(LONGEST):
        number += 1
        if len(line) == LONGEST:
            raise Unfit(f"line {_line(file, offset, number)} is longer than {LONGEST:,} bytes")
        try:
            yield line.decode("utf-8-sig" if file.tell() == len(line) else "utf-8")
        except UnicodeDecodeError:
            raise Unfit(f"line {_line(file, offset, number)} is not UTF-8. {_UTF8}") from None


def _line(file: BinaryIO, offset: int, number: int) -> int:
    """Of the whole file, for the number-th line from an offset on."""
    file.seek(0)
    while offset and (block := file.read(min(offset, 1 << 20))):
        number, offset = number + block.count(b"\n"), offset - len(block)
    return number
