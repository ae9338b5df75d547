"""From a file's bytes to rows. Whatever a line holds, the lines after it are read: it costs itself, and is told."""

from __future__ import annotations

import csv
import re

from attrs import frozen

from domains.imports.failures import Unreadable
from domains.imports.values import Layout, ProcessMealShort, Row, RowError
from flowdsl import Failure, Result, Success

LONGEST = 128 * 1024
"""Bytes of a record; a longer one is no row."""
_CELL = 200
_MARK = b"\xef\xbb\xbf"
_OTHERS = (
    (b"\xff\xfe", "is UTF-16, not UTF-8", "Save it as CSV UTF-8"),
    (b"\xfe\xff", "is UTF-16, not UTF-8", "Save it as CSV UTF-8"),
    (b"\x1f\x8b", "is compressed", "Unpack it first: a compressed file cannot be gone on with from its middle"),
    (b"PK\x03\x04", "is a ZIP archive or a spreadsheet", "Save it as CSV UTF-8"),
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@frozen
class Found:
    """The rows of some bytes. What is left begins at `consumed`, in line `line`."""

    rows: list[Row]
    bad: list[RowError]
    consumed: int
    line: int
    endless: bool = False
    """What is left begins with a line that is longer than a record may be, and its end is not in sight."""


@frozen
class Header:
    layout: Layout
    offset: int
    line: int


def header(url: str, head: bytes, *, whole: bool) -> Result[Header, Unreadable]:
    """What the first bytes say. `whole`: they are the whole file."""

    def refused(problem: str, remedy: str) -> Failure[Unreadable]:
        return Failure(Unreadable(url, problem, remedy))

    for magic, problem, remedy in _OTHERS:
        if head.startswith(magic):
            return refused(problem, remedy)
    start = len(_MARK) if head.startswith(_MARK) else 0
    line = 1
    while (blank := re.compile(rb"[ \t]*\r?\n").match(head, start)) is not None:
        start, line = blank.end(), line + 1
    broken = head.find(b"\n", start) + 1
    end = broken or len(head)
    record = head[start:end]
    if not record.strip():
        return refused("is empty", "Its first line names the columns, order_id and sku among them")
    if b"\0" in record:
        return refused("is no text in UTF-8", "Save it as CSV UTF-8")
    if b"\r" in record.removesuffix(b"\n").removesuffix(b"\r"):
        return refused("ends its lines with CR alone", "Save it with LF or CRLF")
    if not broken and not whole:
        return refused(f"has a first line of more than {len(head):,} bytes", "Its first line names the columns, order_id and sku among them")
    try:
        return _layout(record.decode()).map(lambda layout: Header(layout, end, line + 1)).alt(lambda said: Unreadable(url, *said))
    except (UnicodeDecodeError, csv.Error):
        return refused("has a first line that is no CSV in UTF-8", "Save it as CSV UTF-8")


def _layout(text: str) -> Result[Layout, tuple[str, str]]:
    delimiter = max(",;\t", key=text.count)
    names = [name.strip().lower() for name in next(csv.reader([text.rstrip("\r\n")], delimiter=delimiter, strict=True))]
    missing = [name for name in ("order_id", "sku") if name not in names]
    if missing:
        return Failure((f"has no column {' and no column '.join(missing)}: its first line is {_shown(text)}", "Name the columns in the first line"))
    for name in ("order_id", "sku"):
        if names.count(name) > 1:
            return Failure((f"has {names.count(name)} columns {name}", "Rename all but one"))
    return Success(Layout(delimiter, len(names), names.index("order_id"), names.index("sku")))


def rows_in(buffer: bytes, line: int, layout: Layout, limit: int, *, whole: bool) -> Found:
    """At most `limit` rows and bad lines. `whole`: nothing comes after these bytes, so what is cut off there stays so."""
    rows: list[Row] = []
    bad: list[RowError] = []
    at, delimiter = 0, layout.delimiter.encode()
    while at < len(buffer) and len(rows) + len(bad) < limit:
        end = _end(buffer, at, delimiter, whole=whole)
        if end is None and not whole and len(buffer) - at <= LONGEST:
            break  # the rest of it is not here yet
        first = buffer.find(b"\n", at, end) + 1 or end or (len(buffer) if whole else None)
        if first is None:
            return Found(rows, bad, at, line, endless=True)
        read: Row | RowError | None
        if first - at > LONGEST:
            read, end = too_long(buffer[at:first], line), first
        elif end is None:
            read, end = _bad(buffer[at:first], line, "a quote is opened and never closed"), first
        else:
            read = _row(buffer[at:end], line, layout)
            if isinstance(read, RowError) and read.error.startswith(_STRAY):
                end = first  # quotes are not what they seem: what looked like their inside may be rows
        if isinstance(read, Row):
            rows.append(read)
        elif read is not None:
            bad.append(read)
        line += buffer.count(b"\n", at, end)
        at = end
    return Found(rows, bad, at, line)


def too_long(record: bytes, line: int) -> RowError:
    return _bad(record, line, f"longer than {LONGEST:,} bytes")


_STRAY = "a quote in the wrong place"


def _end(buffer: bytes, start: int, delimiter: bytes, *, whole: bool) -> int | None:
    """Where the record that begins there ends. A line break inside quotes is none. None: not in these bytes."""
    at, inside = start, False
    while at - start <= LONGEST:
        end = buffer.find(b"\n", at) + 1
        stop = end or len(buffer)
        if inside or buffer.count(b'"', at, stop):
            inside = _inside(buffer[at:stop], delimiter, inside)
        if not inside and (end or whole):
            return stop
        if not end:
            return None
        at = end
    return None


def _inside(line: bytes, delimiter: bytes, inside: bool) -> bool:
    """Whether a line ends inside quotes. Only a quote that begins a cell opens any."""
    for cell in line.split(delimiter):
        if inside or cell.startswith(b'"'):
            inside ^= cell.count(b'"') % 2 == 1
    return inside


def _row(record: bytes, line: int, layout: Layout) -> Row | RowError | None:
    """None for an empty line."""
    try:
        text = record.decode().rstrip("\r\n")
        if not text.strip():
            return None
        cells = next(csv.reader([text], delimiter=layout.delimiter, strict=True)) if '"' in text else text.split(layout.delimiter)
    except UnicodeDecodeError:
        return _bad(record, line, "not UTF-8")
    except csv.Error:
        return _bad(record, line, _STRAY)
    if len(cells) != layout.columns:
        return _bad(record, line, f"{len(cells)} cells, and {layout.columns} columns")
    order_id, sku = cells[layout.order_id].strip(), cells[layout.sku].strip()
    for name, value in (("order_id", order_id), ("sku", sku)):
        if not value or len(value) > _CELL or _CONTROL.search(value):
            return RowError(line, order_id[:_CELL], sku[:_CELL], f"{name} is {'empty' if not value else 'no name'}")
    return Row(line, ProcessMealShort(order_id, sku))


def _bad(record: bytes, line: int, problem: str) -> RowError:
    return RowError(line, "", "", f"{problem}: {_shown(record[:_CELL].decode(errors='replace'))}")


def _shown(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 80 else text[:80] + "…")
