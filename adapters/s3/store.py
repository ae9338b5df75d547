"""Opens the store that an address is in. Its errors are translated here, once, into the declared failures."""

from __future__ import annotations

import asyncio
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from attrs import frozen

from domains.imports.failures import BadAddress, Denied, NotConfigured, NotFound, StorageFailure, Unavailable
from domains.imports.place import Place, place
from flowdsl import Failure, Result, Success

if TYPE_CHECKING:
    from obstore.store import LocalStore, S3Store

    Store = S3Store | LocalStore

FOLDER = "IMPORTS_FOLDER"
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
TIMEOUT = timedelta(seconds=60)
"""For a whole answer, which is a block of a file at most."""
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")

_stores: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, ...], Store]] = WeakKeyDictionary()


@frozen
class File:
    """A file in its store."""

    store: Store
    path: str
    place: Place

    @property
    def url(self) -> str:
        return self.place.url

    def beside(self, suffix: str) -> File:
        stem = self.path[:-4] if self.path.lower().endswith(".csv") else self.path
        return File(self.store, stem + suffix, self.place.beside(suffix))


def opened(url: str) -> Result[File, BadAddress | NotConfigured]:
    found = place(url)
    if isinstance(found, Failure):
        return found
    where = found.unwrap()
    return _in_bucket(where) if where.bucket else _on_disk(where)


def _in_bucket(where: Place) -> Result[File, NotConfigured]:
    """Credentials, region and endpoint are those of the environment, under the names that every client of S3 reads."""
    endpoint = next((value for name in _ENDPOINTS if (value := os.environ.get(name, "").strip())), "").rstrip("/")
    if endpoint and urlsplit(endpoint).scheme not in ("http", "https"):
        return Failure(NotConfigured(_ENDPOINTS[0], f"is {endpoint!r}, which is no address", "Write it like https://storage.example"))
    credential = tuple(os.environ.get(name, "") for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"))
    return Success(File(_kept(("s3", where.bucket, endpoint, *credential)), where.key, where))


def _on_disk(where: Place) -> Result[File, BadAddress | NotConfigured]:
    """Only below one folder, links followed: whoever may start an import is not to read the rest of this machine."""
    folder = os.environ.get(FOLDER, "").strip()
    if not folder:
        return Failure(NotConfigured(FOLDER, "is not set, so no file of this machine is read", "Set it to the folder that holds the files"))
    root, path = Path(folder).resolve(), Path(where.key).resolve()
    if not path.is_relative_to(root) or path == root:
        return Failure(BadAddress(where.url, f"is not in the folder that {FOLDER} names"))
    return Success(File(_kept(("file", str(root))), path.relative_to(root).as_posix(), where))


def _kept(wanted: tuple[str, ...]) -> Store:
    """One a bucket, or folder, and event loop, so that connections are used again."""
    stores = _stores.setdefault(asyncio.get_running_loop(), {})
    if wanted not in stores:
        stores[wanted] = _store(*wanted)
    return stores[wanted]


def _store(kind: str, name: str, *settings: str) -> Store:
    from obstore.store import LocalStore, S3Store

    if kind == "file":
        return LocalStore(name, automatic_cleanup=True)
    more: dict[str, Any] = {"endpoint": settings[0]} if settings[0] else {}
    return S3Store(
        name,
        client_options={"allow_http": settings[0].startswith("http://"), "timeout": TIMEOUT, "connect_timeout": timedelta(seconds=10)},
        retry_config={"max_retries": 1, "retry_timeout": TIMEOUT},  # the durable policy does the rest
        **more,
    )


def translated(url: str, error: Exception) -> StorageFailure:
    """What an error of the store means. Raises it again when it means nothing that is known."""
    from obstore import exceptions

    text = str(error)
    status = int(found[1]) if (found := _STATUS.search(text)) else None
    code = found[1] if (found := _CODE.search(text)) else ""
    if isinstance(error, FileNotFoundError):
        return NotFound(url)
    if isinstance(error, PermissionError | exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or status in (401, 403):
        return Denied(url, code or "forbidden")
    if not isinstance(error, exceptions.BaseError | OSError):
        raise error
    if status == 301 or "incorrectly configured region" in text:
        return NotConfigured("AWS_REGION", f"is not the region of {url}", "Set it to the bucket's region")
    if "169.254.169.254" in text:
        return NotConfigured("AWS_ACCESS_KEY_ID", "is not set, and this machine has no role", "Set it, and AWS_SECRET_ACCESS_KEY")
    if status is not None and 400 <= status < 500 and status not in (400, 408, 409, 429):
        return Denied(url, f"{status} {code}".strip())
    return Unavailable(url if status else f"{url}: {text.splitlines()[0]}", status)
