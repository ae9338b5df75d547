"""The error file: a part a chunk while the file is read, one file beside it in the end."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import obstore
from obstore import delete_async, get_async, put_async
from obstore.exceptions import BaseError

from adapters.s3.store import File, opened, translated
from domains.imports.failures import StorageFailure
from domains.imports.values import Report, RowError, WriteErrors
from flowdsl import Failure, Result, Success

if TYPE_CHECKING:
    from adapters.s3.store import Store

COLUMNS = ("line", "order_id", "sku", "error")


async def write_errors(request: WriteErrors) -> Result[None, StorageFailure]:
    found = opened(request.url)
    if isinstance(found, Failure):
        return found
    part = found.unwrap().beside(f"{_folder(request.run)}/{request.offset:020}.csv")
    try:
        await put_async(part.store, part.path, table(request.errors))
    except (BaseError, OSError) as error:
        return Failure(translated(part.url, error))
    return Success(None)


async def publish_errors(request: Report) -> Result[str, StorageFailure]:
    found = opened(request.url)
    if isinstance(found, Failure):
        return found
    whole = found.unwrap().beside(".errors.csv")
    try:
        paths = await parts(found.unwrap(), request.run)
        await put_async(whole.store, whole.path, _joined(whole.store, paths))
    except (BaseError, OSError) as error:
        return Failure(translated(whole.url, error))
    return Success(whole.url)


async def clear_parts(request: Report) -> Result[None, StorageFailure]:
    found = opened(request.url)
    if isinstance(found, Failure):
        return found
    file = found.unwrap()
    try:
        await delete_async(file.store, await parts(file, request.run))
    except FileNotFoundError:
        pass  # another try was here before
    except (BaseError, OSError) as error:
        return Failure(translated(file.url, error))
    return Success(None)


async def parts(file: File, run: str) -> list[str]:
    """The paths of a run's parts, in the order of the file."""
    folder = file.beside(_folder(run)).path + "/"
    return sorted([one["path"] async for batch in obstore.list(file.store, prefix=folder) for one in batch])


async def _joined(store: Store, paths: list[str]) -> AsyncIterator[bytes]:
    yield _line(COLUMNS)
    for path in paths:
        yield bytes(await (await get_async(store, path)).bytes_async())


def table(errors: tuple[RowError, ...]) -> bytes:
    return b"".join(_line((one.line, one.order_id, one.sku, one.error)) for one in errors)


def _line(cells: tuple[object, ...]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _folder(run: str) -> str:
    return f".errors-{run}"
