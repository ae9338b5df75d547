"""A storage with one file and an order service, as a model: what an import's activities do, without S3 or a network."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from attrs import define, field

from domains.imports import activities as contracts
from domains.imports.failures import FileChanged, NotInOrder, Refused, UnknownOrder, Unreadable
from domains.imports.table import header, rows_in
from domains.imports.values import Chunk, ProcessMealShort, ProcessMealShortsCsv, ReadRows, Reference, Report, RowError, SourceFile, WriteErrors
from flowdsl import Failure, Result, Success
from flowdsl.testing import Fake

URL = "s3://kitchen/shorts.csv"
ORDER = ProcessMealShortsCsv(URL)


def csv_of(*rows: str) -> bytes:
    return "".join(f"{row}\n" for row in ("order_id,sku", *rows)).encode()


@define
class Kitchen:
    """`unknown`, `absent`, `bounces`: rows (`order,sku`) that the order service does not take as they are."""

    content: bytes = csv_of("1,A", "1,B", "2,A", "1,A")
    chunk: int = 2
    unknown: set[str] = field(factory=set[str])
    absent: set[str] = field(factory=set[str])
    bounces: set[str] = field(factory=set[str])
    asked: list[str] = field(factory=list[str])
    goods: dict[str, str] = field(factory=dict[str, str])
    """What was made good, by reference."""
    confirmed: dict[str, str] = field(factory=dict[str, str])
    parts: dict[str, dict[int, tuple[RowError, ...]]] = field(factory=dict[str, dict[int, tuple[RowError, ...]]])
    errors: list[RowError] | None = None
    offsets: list[int] = field(factory=list[int])
    """Where each chunk that was read began."""

    def play(self, fake: Fake) -> Fake:
        """Lets the fake do what this does."""
        for contract in (
            contracts.inspect_file, contracts.read_rows, contracts.write_errors, contracts.publish_errors, contracts.clear_parts,
            contracts.validate_order, contracts.process, contracts.send_confirmation,
        ):  # fmt: skip
            fake.on(contract, getattr(self, contract.contract.__name__))
        return fake

    @property
    def digest(self) -> str:
        return sha256(self.content).hexdigest()[:16]

    def inspect_file(self, request: ProcessMealShortsCsv) -> Result[SourceFile, Unreadable]:
        return header(request.s3_url, self.content, whole=True).map(
            lambda read: SourceFile(request.s3_url, len(self.content), self.digest, None, read.layout, read.offset, read.line)
        )

    def read_rows(self, request: ReadRows) -> Result[Chunk, FileChanged]:
        if request.file.etag != self.digest:
            return Failure(FileChanged(request.file.url, request.line))
        self.offsets.append(request.offset)
        found = rows_in(self.content[request.offset :], request.line, request.file.layout, min(self.chunk, request.rows), whole=True)
        offset = request.offset + found.consumed
        return Success(Chunk(tuple(found.rows), tuple(found.bad), offset, found.line, offset >= len(self.content)))

    def write_errors(self, request: WriteErrors) -> Result[None, Any]:
        self.parts.setdefault(request.run, {})[request.offset] = request.errors
        return Success(None)

    def publish_errors(self, request: Report) -> Result[str, Any]:
        self.errors = [error for _, part in sorted(self.parts.get(request.run, {}).items()) for error in part]
        return Success("s3://kitchen/shorts.errors.csv")

    def clear_parts(self, request: Report) -> Result[None, Any]:
        self.parts.pop(request.run, None)
        return Success(None)

    def validate_order(self, request: ProcessMealShort) -> Result[None, UnknownOrder | NotInOrder]:
        row = f"{request.order_id},{request.sku}"
        self.asked.append(row)
        if row in self.unknown:
            return Failure(UnknownOrder(request.order_id))
        return Failure(NotInOrder(request.order_id, request.sku)) if row in self.absent else Success(None)

    def process(self, request: Reference) -> Result[None, Refused]:
        row = f"{request.row.order_id},{request.row.sku}"
        assert self.goods.setdefault(request.reference, row) == row
        return Success(None)

    def send_confirmation(self, request: Reference) -> Result[None, Refused]:
        row = f"{request.row.order_id},{request.row.sku}"
        if row in self.bounces:
            return Failure(Refused("no confirmation is sent", 422, "the address bounces"))
        assert self.confirmed.setdefault(request.reference, row) == row
        return Success(None)

    def twice(self) -> list[str]:
        """Rows that were made good, or confirmed, under more than one reference."""
        return [row for deeds in (self.goods, self.confirmed) for row in set(deeds.values()) if list(deeds.values()).count(row) > 1]
