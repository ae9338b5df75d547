"""Where a file is. However its address is spelled, one file has one place: imports of it share their rows."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from attrs import frozen

from domains.imports.failures import BadAddress
from domains.imports.values import ProcessMealShortsCsv
from flowdsl import Failure, Result, Success

_AWS = re.compile(r"(?:(?P<bucket>[a-z0-9][a-z0-9.-]*[a-z0-9])\.)?s3(?:[.-](?:dualstack\.)?[a-z]{2}(?:-[a-z]+)+-\d)?\.amazonaws\.com(?:\.cn)?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@frozen
class Place:
    """A key in a bucket, or with no bucket an absolute path."""

    bucket: str
    key: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.key}" if self.bucket else f"file://{self.key}"

    def beside(self, suffix: str) -> Place:
        """A neighbour: `shorts.csv` with `.errors` is `shorts.errors`."""
        stem = self.key[:-4] if self.key.lower().endswith(".csv") else self.key
        return Place(self.bucket, stem + suffix)


def place(url: str) -> Result[Place, BadAddress]:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        return Failure(BadAddress(url, f"is no address ({error})"))
    match parts.scheme:
        case "s3":
            bucket, _, key = url.partition("://")[2].partition("/")  # a key may hold ? and #, and is not percent-encoded
            return _in_bucket(url, bucket, key)
        case "http" | "https":
            return _at_amazon(url)
        case "file":
            path = unquote(parts.path)
            if parts.netloc not in ("", "localhost") or not path.startswith("/") or path.endswith("/") or {".", ".."} & set(path.split("/")):
                return Failure(BadAddress(url, "names no file by an absolute path"))
            return Success(Place("", path)) if path.isprintable() else Failure(BadAddress(url, "holds what is not printable"))
        case _:
            return Failure(BadAddress(url, "is no address of a file"))


def _at_amazon(url: str) -> Result[Place, BadAddress]:
    """`https://s3.amazonaws.com/bucket/key`, or with the bucket in the host's name."""
    parts = urlsplit(url)
    found = _AWS.fullmatch(parts.hostname or "")
    if found is None:
        return Failure(BadAddress(url, "is not at S3: of other storages that speak its language, the address is a setting"))
    if parts.query or parts.fragment:
        return Failure(BadAddress(url, "has a query: a signed address ends before a large import does"))
    path = unquote(parts.path).removeprefix("/")
    bucket, key = (found["bucket"], path) if found["bucket"] else path.partition("/")[::2]
    return _in_bucket(url, bucket, key)


def _in_bucket(url: str, bucket: str, key: str) -> Result[Place, BadAddress]:
    if not _BUCKET.fullmatch(bucket):
        return Failure(BadAddress(url, "names no bucket"))
    if not key or key.endswith("/") or not key.isprintable() or {"", ".", ".."} & set(key.split("/")):
        return Failure(BadAddress(url, "names no object in its bucket"))
    return Success(Place(bucket, key))


def import_key(order: ProcessMealShortsCsv) -> str:
    """The place, however it was spelled. What is no address fails as soon as it is looked at."""
    found = place(order.s3_url)
    url = found.unwrap().url if isinstance(found, Success) else order.s3_url
    return url.replace("\0", "%00")[:1000] or "-"
