"""Webhooks over real HTTP, each verifier as its provider signs: once each, and nothing of what is not signed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Never

import asyncpg
import httpx2
import pytest
from attrs import frozen
from standardwebhooks import Webhook as Standard

from flowdsl import Deployment, Steps, signal, workflow
from flowdsl.service.verifiers import Signed, StandardWebhooks, Verifier, full_enrich, planning_center
from flowdsl.service.webhooks import Delivery, Reaction, send, start, webhook
from tests.service.stage import serving, started, until

RAW = b"0123456789abcdef01234567"
SECRET = "whsec_" + base64.b64encode(RAW).decode()
Headers = dict[str, str]

paid = signal("paid", int)


@workflow("hooks.order")
def order(number: str) -> Steps[int, Never]:
    return (yield from paid.receive(number))


@workflow("hooks.note")
def note(text: str) -> Steps[str, Never]:
    yield from ()
    return text


def react(delivery: Delivery) -> Iterator[Reaction]:
    yield start(note, delivery.endpoint)
    yield send("order 7", paid, 42)


@frozen
class Provider:
    """One that signs in its own way: its endpoint, and the headers of a body."""

    name: str
    verifier: Verifier
    sign: Callable[[bytes], Headers]


def _standard(body: bytes, *, id: str = "msg_1", age: float = 0) -> Headers:
    at = datetime.now(UTC) - timedelta(seconds=age)
    return {"webhook-id": id, "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": Standard(SECRET).sign(id, at, body.decode())}


def _hmac(header: str, secret: str, algorithm: str, prefix: str = "") -> Callable[[bytes], Headers]:
    return lambda body: {header: prefix + hmac.new(secret.encode(), body, algorithm).hexdigest()}


PROVIDERS = (
    Provider("standard", StandardWebhooks(SECRET), _standard),
    Provider("planning-center", planning_center(("old", "pco")), _hmac("X-PCO-Webhooks-Authenticity", "pco", "sha256")),
    Provider("fullenrich", full_enrich("api key"), _hmac("X-Signature-SHA1", "api key", "sha1")),
    Provider("plain", Signed("hush", "X-Hub-Signature-256", prefix="sha256="), _hmac("X-Hub-Signature-256", "hush", "sha256", "sha256=")),
)
each = pytest.mark.parametrize("provider", PROVIDERS, ids=lambda one: one.name)
DEPLOYMENT = Deployment([order, note], webhooks=[webhook(one.name, one.verifier, lambda delivery: list(react(delivery))) for one in PROVIDERS])
BODY = b'{"data":[{"id":"d-1","type":"EventDelivery"}]}'


@pytest.fixture
async def client(database: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(database, deployment=DEPLOYMENT) as client:
        yield client


async def counted(database: str) -> dict[str, int]:
    """How many rows each table has that a webhook may write to."""
    connection = await asyncpg.connect(database)
    try:
        tables = ("webhooks", "executions", "unmatched", "mailbox", "deliveries", "aliases", "journal", "audit")
        return {table: await connection.fetchval(f"select count(*) from flowdsl.{table}") for table in tables}
    finally:
        await connection.close()


async def acted(database: str) -> list[str]:
    """What came of all deliveries, once something has of each."""
    connection = await asyncpg.connect(database)
    try:
        async with asyncio.timeout(60):
            while await connection.fetchval("select count(*) from flowdsl.webhooks where due is not null"):
                await asyncio.sleep(0.02)
        return [row["outcome"] for row in await connection.fetch("select outcome from flowdsl.webhooks order by id")]
    finally:
        await connection.close()


@each
async def test_the_same_fifty_times_at_once_acts_once(client: httpx2.AsyncClient, database: str, provider: Provider) -> None:
    headers, place = provider.sign(BODY), f"/webhooks/{provider.name}"
    answers = await asyncio.gather(*(client.post(place, content=BODY, headers=headers) for _ in range(50)))
    assert [one.status_code for one in answers] == [200] * 50
    assert sorted(one.json()["duplicate"] for one in answers) == [False] + [True] * 49
    (outcome,) = await acted(database)
    assert outcome.endswith("; signal paid to order 7: unmatched"), outcome
    assert (await client.post(place, content=BODY, headers=provider.sign(BODY))).json() == {"received": True, "duplicate": True}
    found = await counted(database)
    assert (found["webhooks"], found["executions"], found["unmatched"]) == (1, 1, 1)
    # It came before anybody waited, and is not lost.
    waiting = await started(client, "hooks.order", "order 7")
    assert (await until(client, waiting, "succeeded"))["result"] == 42


def spoiled(provider: Provider) -> Iterator[tuple[str, bytes, Headers]]:
    """What an attacker, or a proxy that means well, makes of a delivery."""
    headers = provider.sign(BODY)
    for place in range(len(BODY)):
        yield f"byte {place} flipped", BODY[:place] + bytes([BODY[place] ^ 1]) + BODY[place + 1 :], headers
    yield "written anew", json.dumps(json.loads(BODY)).encode(), headers
    yield "a byte more", BODY + b"\n", headers
    yield "a byte less", BODY[:-1], headers
    yield "nothing", b"", headers
    for name, value in headers.items():
        yield f"without {name}", BODY, {other: text for other, text in headers.items() if other != name}
        yield f"{name} empty", BODY, {**headers, name: ""}
        yield f"{name} one character off", BODY, {**headers, name: value[:-1] + ("0" if value[-1] != "0" else "1")}
    if provider.name == "standard":
        yield "too old", BODY, _standard(BODY, age=3600)
        yield "from the future", BODY, _standard(BODY, age=-3600)
        yield "another id", BODY, {**headers, "webhook-id": "msg_2"}
        yield "another version", BODY, {**headers, "webhook-signature": headers["webhook-signature"].replace("v1,", "v1a,")}
    else:
        (name,) = headers
        weaker = hmac.new(b"pco", BODY, hashlib.md5).hexdigest()
        yield "another algorithm", BODY, {name: weaker}
        yield "the digest without a secret", BODY, {name: hashlib.sha256(BODY).hexdigest()}


@each
async def test_what_is_not_signed_to_the_letter_leaves_nothing(client: httpx2.AsyncClient, database: str, provider: Provider) -> None:
    before = await counted(database)
    kinds: dict[str, Any] = {}
    for what, body, headers in spoiled(provider):
        answer = await client.post(f"/webhooks/{provider.name}", content=body, headers=headers)
        assert answer.status_code == 401, f"{what}: {answer.text}"
        kinds[answer.text] = what
    assert len(kinds) == 1, "the answer tells which of them it was"
    assert await counted(database) == before
    assert (await client.post(f"/webhooks/{provider.name}", content=BODY, headers=provider.sign(BODY))).status_code == 200


async def test_one_providers_signature_is_no_good_at_anothers_door(client: httpx2.AsyncClient) -> None:
    for one in PROVIDERS:
        for other in PROVIDERS:
            answer = await client.post(f"/webhooks/{other.name}", content=BODY, headers=one.sign(BODY))
            assert answer.status_code == (200 if one is other else 401)
