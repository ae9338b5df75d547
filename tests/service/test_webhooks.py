"""Webhooks in: who is believed, what is stored, and that each acts once."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Never

import httpx2
import pytest
from attrs import frozen
from standardwebhooks import Webhook as Standard
from starlette.applications import Starlette

from flowdsl import Deployment, Steps, Success, signal, workflow
from flowdsl.errors import DefinitionError
from flowdsl.postgres import webhooks as kept
from flowdsl.postgres.store import Store
from flowdsl.postgres.worker import Worker
from flowdsl.service.verifiers import Forged, Signed, StandardWebhooks, Verifier, full_enrich, planning_center
from flowdsl.service.webhooks import Delivery, Reaction, Webhook, Webhooks, send, start, webhook

pytestmark = pytest.mark.anyio

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
OTHER = "whsec_" + base64.b64encode(b"another one of the length").decode()
BODY = b'{"data":[{"id":"d-1","type":"EventDelivery"}]}'


def standard(body: bytes = BODY, *, id: str = "msg_1", at: datetime | None = None, secret: str = SECRET) -> dict[str, str]:
    at = at or datetime.now(UTC)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Standard(secret).sign(id, at, body.decode()),
    }


def hexed(secret: str, body: bytes, algorithm: str = "sha256") -> str:
    return hmac.new(secret.encode(), body, algorithm).hexdigest()


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> datetime:
    """The time at which the verifier's clock stands still: a second before a bound is before it, however slow the machine is."""
    at = datetime.now(UTC).replace(microsecond=0)

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return at

    monkeypatch.setattr("standardwebhooks.webhooks.datetime", Stopped)
    return at


class TestStandardWebhooks:
    verifier = StandardWebhooks(SECRET)

    def test_one_that_is_signed_names_its_delivery(self) -> None:
        assert self.verifier.verify(BODY, standard()) == "msg_1"

    def test_the_vector_of_the_specification(self) -> None:
        """The signature alone: its time is long over."""
        signed = Standard("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").sign(
            "msg_p5jXN8AQM9LWM0D4loKWxJek", datetime.fromtimestamp(1614265330, UTC), '{"test": 2432232314}'
        )
        assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

    @pytest.mark.parametrize("seconds", [-299, 299])
    def test_a_little_old_or_new_is_believed(self, stopped: datetime, seconds: int) -> None:
        assert self.verifier.verify(BODY, standard(at=stopped + timedelta(seconds=seconds)))

    @pytest.mark.parametrize("seconds", [-301, 301])
    def test_too_old_or_too_new_is_not(self, stopped: datetime, seconds: int) -> None:
        with pytest.raises(Forged):
            self.verifier.verify(BODY, standard(at=stopped + timedelta(seconds=seconds)))

    def test_no_byte_may_differ(self) -> None:
        headers = standard()
        for place in range(len(BODY)):
            flipped = BODY[:place] + bytes([BODY[place] ^ 1]) + BODY[place + 1 :]
            with pytest.raises(Forged):
                self.verifier.verify(flipped, headers)

    @pytest.mark.parametrize(
        "change",
        [
            {"webhook-id": "msg_2"},
            {"webhook-id": ""},
            {"webhook-timestamp": "1"},
            {"webhook-timestamp": "x"},
            {"webhook-timestamp": ""},
            {"webhook-signature": ""},
            {"webhook-signature": " "},
            {"webhook-signature": "v1"},
            {"webhook-signature": "v1,"},
            {"webhook-signature": "v1,é"},
            {"webhook-signature": "v0," + "A" * 44},
        ],
        ids=str,
    )
    def test_no_header_may_differ(self, change: dict[str, str]) -> None:
        with pytest.raises(Forged):
            self.verifier.verify(BODY, {**standard(), **change})

    def test_a_signature_is_no_good_under_another_version(self) -> None:
        headers = standard()
        with pytest.raises(Forged):
            self.verifier.verify(BODY, {**headers, "webhook-signature": headers["webhook-signature"].replace("v1,", "v0,")})

    def test_one_of_several_signatures_is_enough_and_so_is_one_of_two_secrets(self) -> None:
        wrong = standard(secret=OTHER)["webhook-signature"]
        headers = standard()
        assert self.verifier.verify(BODY, {**headers, "webhook-signature": f"{wrong} {headers['webhook-signature']}"})
        assert StandardWebhooks((OTHER, SECRET)).verify(BODY, headers)
        with pytest.raises(Forged):
            StandardWebhooks(OTHER).verify(BODY, headers)

    def test_what_is_no_text_is_not_signed(self) -> None:
        with pytest.raises(Forged):
            self.verifier.verify(b"\xff\xfe", standard())


class TestPlainSignatures:
    @pytest.mark.parametrize(
        ("verifier", "header", "sign", "id"),
        [
            (planning_center("s"), "X-PCO-Webhooks-Authenticity", hexed("s", BODY), "d-1"),
            (planning_center(("new", "s")), "x-pco-webhooks-authenticity", hexed("s", BODY), "d-1"),
            (full_enrich("key"), "X-Signature-SHA1", hexed("key", BODY, "sha1"), hashlib.sha256(BODY).hexdigest()),
            (
                Signed("k", "X-Hub-Signature-256", prefix="sha256="),
                "X-Hub-Signature-256",
                "sha256=" + hexed("k", BODY),
                hashlib.sha256(BODY).hexdigest(),
            ),
        ],
        ids=["planning center", "while the secret changes", "fullenrich", "with a prefix"],
    )
    def test_are_believed_to_the_letter(self, verifier: Verifier, header: str, sign: str, id: str) -> None:
        assert verifier.verify(BODY, {header: sign}) == id
        for headers in ({}, {header: ""}, {header: sign[:-1]}, {header: sign.upper()}, {header: sign + "0"}, {header: "é" * 40}, {"other": sign}):
            with pytest.raises(Forged):
                verifier.verify(BODY, headers)
        for body in (BODY + b" ", json.dumps(json.loads(BODY)).encode(), BODY[:-1], b""):
            with pytest.raises(Forged):
                verifier.verify(body, {header: sign})

    @pytest.mark.parametrize("body", [b"", b"null", b"[]", b'{"data":[]}', b'{"data":[{"id":1}]}', b"x"])
    def test_what_is_signed_and_names_no_delivery_is_refused(self, body: bytes) -> None:
        with pytest.raises(Forged, match="names no delivery"):
            planning_center("s").verify(body, {"x-pco-webhooks-authenticity": hexed("s", body)})

    @pytest.mark.parametrize("secret", ["", " ", (), ("", "s")])
    def test_an_empty_secret_is_refused_at_once(self, secret: Any) -> None:
        for make in (planning_center, full_enrich, Signed, StandardWebhooks):
            with pytest.raises(DefinitionError, match="secret is empty"):
                make(secret)

    def test_no_secret_is_shown(self) -> None:
        assert "hush" not in repr([planning_center("hush"), full_enrich(("hush", "hush2"))]) and SECRET[6:] not in repr(StandardWebhooks(SECRET))


paid = signal("paid", int)


@workflow("order")
def order(number: str) -> Steps[int, Never]:
    return (yield from paid.receive(number))


@workflow("count")
def count(number: int) -> Steps[int, Never]:
    yield from ()
    return number


DEPLOYMENT = Deployment([order, count], [])


@frozen
class Limits:
    body_bytes: int = 1000
    body_depth: int = 10
    body_seconds: float = 60.0


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with await Store.open(database) as store:
        yield store


def service(store: Store, react: Callable[[Delivery], Iterable[Reaction]], verifier: Verifier | None = None) -> Webhooks:
    return Webhooks([webhook("in", verifier or StandardWebhooks(SECRET), react)], store, Limits(), poll=0.05)


def asking(webhooks: Webhooks) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(Starlette(routes=webhooks.routes)), base_url="http://test")


async def stored(store: Store) -> list[kept.Received]:
    return await kept.received(store, "default")


async def acted(webhooks: Webhooks, store: Store) -> list[str | None]:
    """The outcomes, once all that is due was acted on."""
    while await kept.act(store, ["in"], webhooks._act):
        pass
    return [one.outcome for one in reversed(await stored(store))]


def pays(delivery: Delivery) -> list[Reaction]:
    return [send("order 7", paid, 42)]


class TestReceiving:
    async def test_it_is_stored_answered_and_acted_on(self, store: Store) -> None:
        webhooks = service(store, lambda delivery: [start(count, len(delivery.json()["data"]))])
        async with asking(webhooks) as client, Worker(DEPLOYMENT, store) as worker:
            answer = await client.post("/webhooks/in", content=BODY, headers=standard())
            assert (answer.status_code, answer.json()) == (200, {"received": True, "duplicate": False})
            acting = asyncio.create_task(webhooks.run())
            async with asyncio.timeout(60):
                while not (rows := await store.again("select id from flowdsl.executions")):
                    await asyncio.sleep(0.02)
                assert await worker.wait(str(rows[0]["id"])) == Success(1)
            acting.cancel()
            await asyncio.gather(acting, return_exceptions=True)

    async def test_the_same_fifty_times_at_once_acts_once(self, store: Store) -> None:
        webhooks, headers = service(store, lambda _: [start(count, 1), send("order 7", paid, 42)]), standard()
        async with asking(webhooks) as client:
            answers = await asyncio.gather(*(client.post("/webhooks/in", content=BODY, headers=headers) for _ in range(50)))
        assert [answer.status_code for answer in answers] == [200] * 50
        assert sorted(answer.json()["duplicate"] for answer in answers) == [False] + [True] * 49
        await asyncio.gather(*(acted(webhooks, store) for _ in range(5)))
        assert await store.again("select count(*)::int as n from flowdsl.executions") == [(1,)]
        assert await store.again("select count(*)::int as n from flowdsl.unmatched") == [(1,)]

    async def test_what_is_not_signed_leaves_nothing(self, store: Store) -> None:
        async with asking(service(store, pays)) as client:
            for content, headers in [
                (BODY, {}),
                (BODY + b" ", standard()),
                (json.dumps(json.loads(BODY)).encode(), standard()),
                (BODY, standard(at=datetime.now(UTC) - timedelta(minutes=6))),
                (BODY, standard(secret=OTHER)),
            ]:
                answer = await client.post("/webhooks/in", content=content, headers=headers)
                assert answer.status_code == 401 and answer.headers["content-type"] == "application/problem+json"
            assert (await client.post("/webhooks/none", content=BODY, headers=standard())).status_code == 404
            assert (await client.get("/webhooks/in")).status_code == 405
            assert (await client.post("/webhooks/in", content=b"x" * 1001)).status_code == 413
        assert await stored(store) == []

    async def test_one_that_comes_before_anybody_waits_is_not_lost(self, store: Store) -> None:
        webhooks = service(store, pays)
        async with asking(webhooks) as client:
            await client.post("/webhooks/in", content=BODY, headers=standard())
        assert await acted(webhooks, store) == ["signal paid to order 7: unmatched"]
        async with Worker(DEPLOYMENT, store) as worker:
            assert await worker.wait(await worker.start(order, "order 7")) == Success(42)

    async def test_a_store_that_is_away_asks_for_another_delivery(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        async def away(*_: Any) -> Any:
            raise ConnectionRefusedError

        webhooks = service(store, pays)
        monkeypatch.setattr(store, "again", away)
        async with asking(webhooks) as client:
            answer = await client.post("/webhooks/in", content=BODY, headers=standard())
        assert answer.status_code == 503 and "Retry-After" in answer.headers


class TestActing:
    async def test_what_was_left_by_a_process_that_died_is_taken_up(self, store: Store) -> None:
        """It died when it had started the execution, and had not yet said so."""
        await kept.keep(store, "default", "in", "d", BODY)
        webhooks = service(store, lambda _: [start(count, 1)])

        async def dies(came: kept.Received) -> str:
            await webhooks._act(came)
            raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await kept.act(store, ["in"], dies)
        assert [one.due is None for one in await stored(store)] == [False]
        (outcome,) = await acted(webhooks, store)
        assert outcome is not None and outcome.endswith("joined")
        assert await store.again("select count(*)::int as n from flowdsl.executions") == [(1,)]

    async def test_one_that_fails_is_tried_again_and_holds_up_no_other(self, store: Store) -> None:
        def fails(delivery: Delivery) -> list[Reaction]:
            return [start(count, int(delivery.body))]

        for body in (b"no number", b"2"):
            await kept.keep(store, "default", "in", body.decode(), body)
        webhooks = service(store, fails)
        bad, good = await acted(webhooks, store)
        assert bad is not None and bad.startswith("ValueError: invalid literal") and good is not None and good.endswith("new")
        for _ in range(kept.TRIES):
            await store.again("update flowdsl.webhooks set due = clock_timestamp() where due is not null")
            await acted(webhooks, store)
        (first, _) = reversed(await stored(store))
        assert (first.tries, first.due) == (kept.TRIES, None)
        assert await kept.again(store, "default", first.id) and not await kept.again(store, "other", first.id)
        assert [one.tries for one in reversed(await stored(store))] == [0, 1]

    async def test_it_is_tried_later_each_time(self, store: Store) -> None:
        await kept.keep(store, "default", "in", "d", b"x")
        webhooks = service(store, lambda delivery: [start(count, int(delivery.body))])
        assert await kept.act(store, ["in"], webhooks._act)  # once: where the machine stands still it may be due again by now
        (one,) = await stored(store)
        assert one.due is not None and timedelta(seconds=4) < one.due - one.at and one.tries == 1

    async def test_nothing_to_do_is_an_outcome(self, store: Store) -> None:
        await kept.keep(store, "default", "in", "d", b"x")
        assert await acted(service(store, lambda _: []), store) == ["nothing to do"]


def test_names_are_parts_of_an_address() -> None:
    for name in ("", "a/b", "a b", "?"):
        with pytest.raises(DefinitionError, match="address"):
            webhook(name, full_enrich("k"), pays)


async def test_two_endpoints_have_two_names(store: Store) -> None:
    one = Webhook("in", full_enrich("k"), pays)
    with pytest.raises(DefinitionError, match="one name"):
        Webhooks([one, one], store, Limits())
