"""Keys: what opens, what does not, and that nobody can tell why."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from flowdsl.errors import NotFound
from flowdsl.postgres import keys
from flowdsl.postgres.keys import BadKey
from flowdsl.postgres.store import Store
from flowdsl.service import keys as access_keys
from flowdsl.service.access import Unauthenticated
from flowdsl.service.keys import KeyAccess
from flowdsl.service.problem import Problem

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with await Store.open(database) as store:
        yield store


def asking(plain: str | None, *, tenant: str | None = None, address: str = "10.0.0.1") -> HTTPConnection:
    headers = [] if plain is None else [(b"authorization", f"Bearer {plain}".encode())]
    headers += [] if tenant is None else [(b"x-tenant-id", tenant.encode())]
    return HTTPConnection({"type": "http", "headers": headers, "client": (address, 1)})


async def refused(access: KeyAccess, *args: Any, **named: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        await access.authenticate(asking(*args, **named))
    return caught.value


class TestKeys:
    async def test_one_opens_its_tenant_in_its_role(self, store: Store) -> None:
        key, plain = await keys.make(store, "acme", "operator", "the nightly job")
        assert plain.startswith(f"flow_{key.id}_") and len(plain) == 61
        caller = await KeyAccess(store).authenticate(asking(plain))
        assert (caller.tenant, caller.may("operator"), caller.may("admin")) == ("acme", True, False)
        assert key.id in caller.name

    async def test_what_is_wrong_is_refused_alike(self, store: Store) -> None:
        _, plain = await keys.make(store, "acme", "viewer", "x")
        _, other = await keys.make(store, "acme", "viewer", "y")
        access = KeyAccess(store)
        wrong = [
            None,
            "",
            "x",
            plain[:-1],
            plain[:-1] + ("A" if plain[-1] != "A" else "B"),
            plain[:18] + other[18:],
            plain.upper(),
            plain + "=",
            "flow_\x00_",
        ]
        found = {(problem.status, problem.detail) for one in wrong for problem in [await refused(access, one, address=str(one))]}
        assert found == {(401, Unauthenticated().detail)}

    async def test_of_the_secret_only_a_digest_is_kept(self, store: Store) -> None:
        _, plain = await keys.make(store, "acme", "viewer", "x")
        held = await store.again(
            "select string_agg(k::text, ' ') || (select string_agg(convert_from(facts, 'UTF8'), ' ') from flowdsl.audit) as all from flowdsl.keys k"
        )
        assert plain[18:] not in held[0]["all"]

    async def test_a_revoked_one_opens_nothing_within_seconds(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        key, plain = await keys.make(store, "acme", "viewer", "x")
        access = KeyAccess(store)
        await access.authenticate(asking(plain))
        await keys.revoke(store, key.id)
        assert (await refused(KeyAccess(store), plain)).status == 401
        monkeypatch.setattr(access_keys, "REMEMBERED", -1.0)
        access._known.clear()
        assert (await refused(access, plain)).status == 401

    async def test_one_that_has_expired_opens_nothing(self, store: Store) -> None:
        _, plain = await keys.make(store, "acme", "viewer", "x", lasts=timedelta(days=1))
        access = KeyAccess(store)
        await access.authenticate(asking(plain))
        await store.again("update flowdsl.keys set expires = clock_timestamp()")
        access._known.clear()
        assert (await refused(access, plain)).status == 401

    async def test_the_header_cannot_name_another_tenant(self, store: Store) -> None:
        _, plain = await keys.make(store, "acme", "admin", "x")
        access = KeyAccess(store)
        assert (await access.authenticate(asking(plain, tenant="acme"))).tenant == "acme"
        assert (await refused(access, plain, tenant="other")).status == 403

    async def test_who_guesses_waits_and_who_is_known_does_not(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(access_keys, "REMEMBERED", 600.0)  # however long the guesses take
        monkeypatch.setattr(access_keys, "REST", 600.0)
        _, plain = await keys.make(store, "acme", "viewer", "x")
        access = KeyAccess(store)
        await access.authenticate(asking(plain))
        statuses = [(await refused(access, f"flow_{'0' * 12}_{n:043}")).status for n in range(access_keys.WRONG + 1)]
        assert statuses == [401] * access_keys.WRONG + [429]
        assert (await access.authenticate(asking(plain))).tenant == "acme"
        assert (await refused(access, "wrong", address="10.0.0.2")).status == 401

    async def test_a_store_that_is_away_is_no_wrong_key(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        async def away(*_: Any) -> Any:
            raise ConnectionRefusedError

        monkeypatch.setattr(store, "again", away)
        assert (await refused(KeyAccess(store), "flow_" + "0" * 12 + "_" + "0" * 43)).status == 503

    async def test_its_use_is_noted(self, store: Store) -> None:
        key, plain = await keys.make(store, "acme", "viewer", "x")
        await KeyAccess(store).authenticate(asking(plain))
        assert [(one.id, one.used is not None) for one in await keys.listed(store)] == [(key.id, True)]

    async def test_revoking_twice_changes_nothing_and_another_tenants_is_not_there(self, store: Store) -> None:
        key, _ = await keys.make(store, "acme", "viewer", "x")
        with pytest.raises(NotFound):
            await keys.revoke(store, key.id, tenant="other")
        first = await keys.revoke(store, key.id, tenant="acme", by="ann")
        assert await keys.revoke(store, key.id) == first
        events = await store.again("select tenant, event from flowdsl.audit order by id")
        assert [tuple(row) for row in events] == [("acme", "KEY_MADE"), ("acme", "KEY_REVOKED")]

    @pytest.mark.parametrize(
        ("tenant", "role", "name", "lasts", "says"),
        [
            ("", "viewer", "x", None, "the tenant ''"),
            ("a\nb", "viewer", "x", None, "printable"),
            ("a/b", "viewer", "x", None, "holds a /"),
            ("acme", "owner", "x", None, "no role 'owner'"),
            ("acme", "viewer", "", None, "the name ''"),
            ("acme", "viewer", "x", timedelta(), "longer than no time"),
        ],
    )
    async def test_a_wish_that_cannot_be_met_says_why(self, store: Store, tenant: str, role: Any, name: str, lasts: Any, says: str) -> None:
        with pytest.raises(BadKey, match=says):
            await keys.make(store, tenant, role, name, lasts=lasts)
        assert await keys.listed(store) == []


def run(database: str, *words: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-m", "flowdsl", "keys", *words, "--database", database], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


class TestTheCommand:
    def test_makes_lists_and_revokes(self, database: str) -> None:
        code, out, said = run(database, "make", "ci", "--tenant", "acme", "--role", "viewer", "--lasts", "90d")
        assert (code, out[:5]) == (0, "flow_") and "shown this once" in said
        (known,) = json.loads(run(database, "list", "--json")[1])
        assert (known["tenant"], known["role"], known["name"], known["revoked"]) == ("acme", "viewer", "ci", None)
        assert "is revoked" in run(database, "revoke", known["key"])[1]
        listed = run(database, "list")[1]
        assert known["key"] in listed and out.strip() not in listed

    def test_one_that_is_not_there_is_a_clear_error(self, database: str) -> None:
        code, _, said = run(database, "revoke", "nope")
        assert code == 2 and "no key named 'nope'" in said
        assert "no keys: flowdsl keys make NAME makes one" in run(database, "list")[1]
