"""S3 for tests: moto's server in a thread, and one file in it or on disk."""

from __future__ import annotations

import os
import xml.etree.ElementTree as Tree
from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx2
import pytest
from attrs import frozen

from domains.imports.place import place

_numbers = count()
SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"}
"""Whoever signs is somebody: moto does not look at the signature."""


@frozen
class Storage:
    """A bucket of its own for each test."""

    endpoint: str
    bucket: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/day one/shorts.csv"

    def _at(self, url: str) -> str:
        return f"{self.endpoint}/{self.bucket}/{place(url).unwrap().key}"

    def put(self, content: bytes, url: str | None = None) -> str:
        httpx2.put(self._at(url or self.url), content=content, headers=SIGNED, timeout=60).raise_for_status()
        return url or self.url

    def get(self, url: str) -> bytes:
        return httpx2.get(self._at(url), headers=SIGNED, timeout=60).raise_for_status().content

    def delete(self, url: str) -> None:
        httpx2.delete(self._at(url), headers=SIGNED, timeout=60).raise_for_status()

    def listed(self) -> list[str]:
        text = httpx2.get(f"{self.endpoint}/{self.bucket}?list-type=2", headers=SIGNED, timeout=60).raise_for_status().text
        return [one.text or "" for one in Tree.fromstring(text).iter() if one.tag.endswith("}Key")]

    def keep_versions(self) -> None:
        body = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        httpx2.put(f"{self.endpoint}/{self.bucket}?versioning", content=body.encode(), headers=SIGNED, timeout=60).raise_for_status()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server: Any = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def storage(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    made = Storage(s3_server, f"kitchen-{os.getpid()}-{next(_numbers)}")
    httpx2.put(f"{s3_server}/{made.bucket}", headers=SIGNED, timeout=60).raise_for_status()
    for name in ("AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN", "IMPORTS_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return made
