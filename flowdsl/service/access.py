"""Who asks: a caller with a tenant and roles. API keys implement `Access`; for development there is one that believes whoever is on this machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Protocol
from urllib.parse import urlsplit

from attrs import field, frozen
from starlette.requests import HTTPConnection

from flowdsl.postgres.keys import Role
from flowdsl.service.problem import Problem

ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")
"""Each may do what those before it may."""


def _highest(roles: frozenset[Role]) -> int:
    return max((ROLES.index(role) for role in roles), default=-1)


def _set(roles: Iterable[Role]) -> frozenset[Role]:
    return frozenset(roles)


@frozen
class Caller:
    """Who asks. `tenant` decides what there is for them; `name` is what the audit says of them."""

    tenant: str
    roles: frozenset[Role] = field(converter=_set)
    name: str = "unknown"

    def may(self, role: Role) -> bool:
        """Whether a route for that role is for them."""
        return _highest(self.roles) >= ROLES.index(role)


class Access(Protocol):
    """Finds out who asks, from credentials alone."""

    async def authenticate(self, request: HTTPConnection) -> Caller:
        """Who asks. Raises `Unauthenticated`, or another `Problem`, and tells no more than that."""
        ...


class Unauthenticated(Problem):
    """No credentials, or wrong ones: which of the two is not said."""

    def __init__(self, detail: str = "Send a valid API key: Authorization: Bearer …") -> None:
        super().__init__(401, "not authenticated", detail, headers={"WWW-Authenticate": "Bearer"})


def agreed_tenant(request: HTTPConnection, tenant: str) -> str:
    """The credential's tenant. Raises `Problem` when the header X-Tenant-ID names another one."""
    said = request.headers.get("x-tenant-id")
    if said is not None and said != tenant:
        raise Problem(403, "another tenant", "X-Tenant-ID names another tenant than the credentials do: leave it out, or use that tenant's key")
    return tenant


# Development


DEVELOPMENT = (
    "development mode: whoever reaches this port is an administrator of every tenant, and X-Tenant-ID is believed. It answers this machine only."
)


@frozen
class DevelopmentAccess:
    """Believes everybody on this machine: the tenant is what X-Tenant-ID says, else `default`. Never for a port that others reach.

    A page in a browser may send requests here too: those that come from a page of another origin, or for a name that is not this machine's, are
    refused.
    """

    async def authenticate(self, request: HTTPConnection) -> Caller:
        if request.client is None or not _loopback(request.client.host):
            raise Unauthenticated("development mode answers this machine only: run the service with API keys")
        if any(name in request.headers for name in ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")):
            raise Unauthenticated("development mode does not answer through a proxy, behind which may be anybody: run the service with API keys")
        host = request.headers.get("host", "")
        if not _local_name(host):
            raise Unauthenticated("development mode answers to localhost, 127.0.0.1 and [::1] only: correct the Host header")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Unauthenticated("development mode does not answer pages of another origin")
        return Caller(said_tenant(request) or "default", frozenset(ROLES), "development")


def said_tenant(request: HTTPConnection) -> str | None:
    """The header X-Tenant-ID, if there is one. Raises `Problem` when it is none."""
    said = request.headers.getlist("x-tenant-id")
    if not said:
        return None
    if len(said) > 1 or not 0 < len(said[0]) <= 200 or not said[0].isprintable() or "/" in said[0]:
        raise Problem(400, "no such tenant", "X-Tenant-ID is one name of 1 to 200 printable characters, without a /")
    return said[0]


def _loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _local_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or _loopback(name)


__all__ = ["DEVELOPMENT", "ROLES", "Access", "Caller", "DevelopmentAccess", "Role", "Unauthenticated", "agreed_tenant", "said_tenant"]
