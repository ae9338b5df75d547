"""CSV files of subscribers, read in chunks: a chunk's rows and the place where the next one begins are one transaction."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from adapters.enrichment_store import insert_subscribers
from adapters.fullenrich.settings import UPLOADS, ways
from domains.enrichment.addresses import email_type, normal
from domains.enrichment.failures import Unreadable
from domains.enrichment.values import Chunk, ReadChunk, Uploaded
from flowdsl import Failure, Result, Success, this_attempt

ROWS = 500
LONGEST = 1 << 16
"""Bytes of a line: more is no list of subscribers."""


async def read_upload(request: ReadChunk) -> Result[Chunk, Unreadable]:
    path = request.upload.path
    try:
        with _found(path).open("rb") as file:
            columns, rows, following = _chunk(file, request.offset, request.columns)
    except (OSError, ValueError, csv.Error) as error:
        return Failure(Unreadable(path, getattr(error, "strerror", None) or str(error)))
    payloads: dict[str, dict[str, str]] = {}
    refused = 0
    for row in rows:
        told = dict(zip(columns, row, strict=False))
        address = normal(told.get("email", ""))
        refused += address is None
        if address is not None:
            payloads.setdefault(address, told)
    async with this_attempt().transaction() as connection:
        created = await insert_subscribers(connection, payloads, request.upload.source)
    personal = sum(email_type(one) == "personal" for one in created)
    return Success(Chunk(following, columns, Uploaded(len(created), len(rows) - refused - len(created), personal, refused)))


def _found(path: str) -> Path:
    """Within the folder for uploads, whatever the path says."""
    folder = ways().uploads.resolve()
    found = (folder / path).resolve()
    if not found.is_relative_to(folder):
        raise ValueError(f"it is not in {UPLOADS}")
    return found


def _chunk(file: BinaryIO, offset: int, columns: tuple[str, ...]) -> tuple[tuple[str, ...], list[list[str]], int | None]:
    """Columns, rows, and where the next chunk begins. Rows may hold line ends within quotes."""
    file.seek(offset)
    reader = csv.reader(_lines(file), strict=True)
    if offset == 0:
        columns = tuple(name.strip().lower() for name in next(reader, []))
        if "email" not in columns:
            raise ValueError("its first line names no column `email`")
    rows: list[list[str]] = []
    for row in reader:
        if row:
            rows.append(row)
        if len(rows) == ROWS:
            return columns, rows, file.tell()
    return columns, rows, None


def _lines(file: BinaryIO) -> Iterator[str]:
    while line := file.readline(LONGEST):
        if len(line) == LONGEST:
            raise ValueError(f"a line is longer than {LONGEST} bytes")
        yield line.decode("utf-8-sig" if file.tell() == len(line) else "utf-8")
