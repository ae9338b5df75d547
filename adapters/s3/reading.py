"""Reads rows from the middle of a file: some blocks of bytes at a time, whatever the size of the file or of a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obstore import get_async, head_async
from obstore.exceptions import BaseError, PreconditionError

from adapters.s3.store import File, opened, translated
from domains.imports.failures import FileChanged, InspectFailure, NotFound, ReadFailure, StorageFailure, Unavailable
from domains.imports.table import LONGEST, header, rows_in, too_long
from domains.imports.values import Chunk, ProcessMealShortsCsv, ReadRows, Row, RowError, SourceFile
from flowdsl import Failure, Result, Success

if TYPE_CHECKING:
    from obstore import GetOptions

BLOCK = 128 * 1024
_WHILE_LOOKED_AT = "it was replaced while it was looked at"


async def inspect_file(request: ProcessMealShortsCsv) -> Result[SourceFile, InspectFailure]:
    found = opened(request.s3_url)
    if isinstance(found, Failure):
        return found
    file = found.unwrap()
    try:
        meta = await head_async(file.store, file.path)
        size, etag, version = meta["size"], meta["e_tag"], meta["version"]
        head = await _bytes(file, 0, min(size, LONGEST), etag, version) if size else b""
    except PreconditionError:
        return Failure(Unavailable(f"{file.url}: {_WHILE_LOOKED_AT}"))
    except (BaseError, OSError) as error:
        return Failure(translated(file.url, error))
    return header(file.url, head, whole=size <= len(head)).map(
        lambda read: SourceFile(file.url, size, etag, version, read.layout, read.offset, read.line)
    )


async def read_rows(request: ReadRows) -> Result[Chunk, ReadFailure]:
    found = opened(request.file.url)
    if isinstance(found, Failure):
        return found
    try:
        return Success(await Reading(found.unwrap(), request).chunk())
    except PreconditionError:
        return Failure(FileChanged(request.file.url, request.line))
    except (BaseError, OSError) as error:
        failure: StorageFailure = translated(request.file.url, error)
        gone = isinstance(failure, NotFound) and request.offset > request.file.offset
        return Failure(FileChanged(request.file.url, request.line) if gone else failure)


class Reading:
    """One chunk, as far as it is read. `_offset` and `_line` are those of what the buffer begins with."""

    def __init__(self, file: File, request: ReadRows) -> None:
        self._file, self._request, self._source = file, request, request.file
        self._offset, self._line, self._buffer = request.offset, request.line, b""
        self._rows: list[Row] = []
        self._bad: list[RowError] = []

    async def chunk(self) -> Chunk:
        size = self._source.size
        while self._offset < size and (room := self._request.rows - len(self._rows) - len(self._bad)) > 0:
            self._buffer += await self._block(self._offset + len(self._buffer))
            found = rows_in(
                self._buffer, self._line, self._source.layout, room, whole=self._offset + len(self._buffer) >= size
            )  # fmt: skip
            self._rows += found.rows
            self._bad += found.bad
            self._offset, self._line, self._buffer = self._offset + found.consumed, found.line, self._buffer[found.consumed :]
            if found.endless:
                await self._skip()
        return Chunk(tuple(self._rows), tuple(self._bad), self._offset, self._line, self._offset >= size)

    async def _skip(self) -> None:
        """Past the end of a line that does not fit in memory."""
        self._bad.append(too_long(self._buffer, self._line))
        at = self._offset + len(self._buffer)
        while at < self._source.size:
            block = await self._block(at)
            found = block.find(b"\n") + 1
            at += found or len(block)
            if found:
                break
        self._offset, self._line, self._buffer = at, self._line + 1, b""

    async def _block(self, start: int) -> bytes:
        end = min(start + BLOCK, self._source.size)
        return await _bytes(self._file, start, end, self._source.etag, self._source.version) if start < end else b""


async def _bytes(file: File, start: int, end: int, etag: str | None, version: str | None) -> bytes:
    """Those bytes of that version, all of them. Of a bucket that keeps versions, an older one too."""
    wanted: GetOptions = {"range": (start, end)}
    if etag is not None:
        wanted["if_match"] = etag
    if version is not None:
        wanted["version"] = version
    answer = await get_async(file.store, file.path, options=wanted)
    found = bytes(await answer.bytes_async())
    if len(found) != end - start:
        raise OSError(f"{len(found)} bytes came instead of {end - start}")
    return found


__all__ = ["BLOCK", "inspect_file", "read_rows"]
