"""Uploads of subscribers, file by file: what a file may hold, what is told of one that cannot be read, and one that changes while it is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from adapters.fullenrich import settings, uploads
from adapters.fullenrich.uploads import LONGEST, read_upload
from domains.enrichment.failures import Unreadable
from domains.enrichment.values import Chunk, ReadChunk, Upload, Uploaded
from flowdsl import Failure, Success
from tests.adapters.conftest import Perform

pytestmark = pytest.mark.anyio

PATH = "list.csv"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(settings.UPLOADS, str(tmp_path))
    return tmp_path


async def why_not(path: str = PATH) -> str:
    found = await read_upload(ReadChunk(Upload(path), 0, None))
    assert isinstance(found, Failure) and isinstance(found.failure(), Unreadable), found
    return str(found.failure())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "its first line names no column `email`. Its first line names the columns"),
        (b"\n\nemail\nkim@gmail.com\n", "names no column `email`"),
        (b"name,address\nKim,kim@gmail.com\n", "names no column `email`"),
        ("email\nkim@gmail.com\n".encode("utf-16"), "it is UTF-16. Save it as CSV UTF-8"),
        (b"PK\x03\x04 and so on", "it is a ZIP archive or a spreadsheet. Save it"),
        (b"\x1f\x8b\x08", "it is compressed. Save it"),
        (b"email,name\nkim@gmail.com,J\xfcrgen\n", "line 2 is not UTF-8. Save it"),
        (b"email\nkim@gmail.com\n" + b"x" * LONGEST, f"line 3 is longer than {LONGEST:,} bytes"),
        (b'email,name\nkim@gmail.com,"Kim" Okafor\n', "a quote is in the wrong place, or never closed"),
        (b'email,name\nkim@gmail.com,"Kim\n' + b"a@gmail.com,A\n" * 20_000, "a quote is in the wrong place, or never closed"),
    ],
    ids=["empty", "header not first", "no column", "UTF-16", "spreadsheet", "compressed", "latin-1", "huge line", "stray quote", "open quote"],
)
async def test_what_cannot_be_read_is_told_and_where(folder: Path, content: bytes, problem: str) -> None:
    (folder / PATH).write_bytes(content)
    assert problem in await why_not()


async def test_what_is_no_file_of_the_folder_is_not_opened(folder: Path) -> None:
    (folder / "inner").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "link.csv").symlink_to("/etc/passwd")
    assert "it is no file" in await why_not("inner")
    assert "it is no file" in await why_not("pipe")
    assert "its name is none" in await why_not("a\0b")
    for outside in ("link.csv", "/etc/passwd", "../list.csv"):
        assert "it is not in the folder that ENRICHMENT_UPLOADS names" in await why_not(outside)


async def test_a_line_is_counted_from_the_files_beginning(folder: Path) -> None:
    content = b"email\n" + b"kim@gmail.com\n" * 9 + b"\xff@gmail.com\n"
    (folder / PATH).write_bytes(content)
    found: Any = await read_upload(ReadChunk(Upload(PATH), 6 + 4 * 14, None))
    assert "line 11 is not UTF-8" in str(found.failure())


async def test_chunk_by_chunk_whatever_the_delimiter_and_no_further_once_it_was_replaced(
    folder: Path, perform: Perform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "ROWS", 2)
    file = folder / PATH
    file.write_text("\ufeffname;EMAIL\nKim;kim@gmail.com\nNobody;\nMira;mira@example.org\n", encoding="utf-8")
    first: Chunk = (await perform(read_upload, ReadChunk(Upload(PATH), 0, None))).unwrap()
    assert first.counted == Uploaded(1, 0, 1, 1)
    second = await perform(read_upload, ReadChunk(Upload(PATH), first.next_offset or 0, first.version))
    assert second == Success(Chunk(None, first.version, Uploaded(1, 0, 0, 0)))
    (folder / "new").write_bytes(file.read_bytes())
    (folder / "new").replace(file)
    late = await perform(read_upload, ReadChunk(Upload(PATH), first.next_offset or 0, first.version))
    assert "it was replaced while it was read. Upload it again" in str(late.failure())


async def test_a_header_and_nothing_else(folder: Path, perform: Perform) -> None:
    (folder / PATH).write_bytes(b"email")
    assert (await perform(read_upload, ReadChunk(Upload(PATH), 0, None))).unwrap().counted == Uploaded(0, 0, 0, 0)
