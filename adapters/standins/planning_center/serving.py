"""The stand-in on a real port: in a thread for tests, or as a process."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from typing import cast, get_args

from adapters.standins.listening import listen, server, url
from adapters.standins.listening import serve as serve
from adapters.standins.planning_center.app import create_app
from adapters.standins.planning_center.churn import Churn
from adapters.standins.planning_center.deliveries import Subscriptions
from adapters.standins.planning_center.faults import Faults, Level
from adapters.standins.planning_center.gate import Credentials, Quota
from adapters.standins.planning_center.organization import Organization


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="planning_center", description="A stand-in of Planning Center's People API.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--people", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=7, help="decides the people, the faults and the churn")
    parser.add_argument("--faults", choices=get_args(Level), default="none")
    parser.add_argument("--limit", type=int, default=100, help="requests in a period; three quarters of it beyond offset 30000")
    parser.add_argument("--period", type=float, default=20.0, help="seconds")
    parser.add_argument("--churn", action="store_true", help="change people while lists are read")
    parser.add_argument("--churn-every", type=int, default=5, help="list requests between changes")
    parser.add_argument("--churn-changes", type=int, default=200, help="changes in all")
    parser.add_argument("--unqueryable", choices=("ignore", "refuse"), default="ignore", help="what `where` on anything else does")
    parser.add_argument("--quiet-merges", action="store_true", help="moved contact rows keep their updated_at")
    parser.add_argument("--webhooks", metavar="URL", help="who is told of changes that are asked for at /_standin/change")
    parser.add_argument("--webhook-secret", default="secret", help="of the subscriptions")
    parser.add_argument("--app-id", default="app_id")
    parser.add_argument("--secret", default="secret")
    parser.add_argument("--token", default="token")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = _arguments(arguments)
    organization = Organization.generate(chosen.people, chosen.seed)
    organization.quiet_merges = chosen.quiet_merges
    app = create_app(
        organization,
        faults=Faults.level(cast(Level, chosen.faults), chosen.seed),
        quota=Quota(limit=chosen.limit, period=chosen.period),
        churn=Churn(every=chosen.churn_every, changes=chosen.churn_changes, seed=chosen.seed) if chosen.churn else None,
        credentials=Credentials(chosen.app_id, chosen.secret, chosen.token),
        unqueryable=chosen.unqueryable,
        subscriptions=Subscriptions(chosen.webhooks, chosen.webhook_secret) if chosen.webhooks else None,
    )
    listener = listen(chosen.port)
    print(f"listening on {url(listener)}", flush=True)
    with suppress(KeyboardInterrupt):
        server(app).run(sockets=[listener])
