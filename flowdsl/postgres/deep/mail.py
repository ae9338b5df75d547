"""Invariants of mail: what was accepted is counted, waits or was taken, and wakes whom it is for."""

from __future__ import annotations

from collections.abc import Iterator

from flowdsl.postgres.deep.rows import Batch, Finding


def i13_counted(batch: Batch) -> Iterator[Finding]:
    """No mail has a number beyond the count of those that were accepted."""
    for id, mails in batch.mail.items():
        row = batch.executions.get(id)
        newest = max(one["seq"] for one in mails)
        if row is not None and newest > row["mail"]:
            found = f"mail {newest} is in its mailbox, and its row counts {row['mail']}"
            yield Finding(13, str(id), found, f"Set mail of its row to {newest}: it would sleep through what comes next")


def i14_woken(batch: Batch) -> Iterator[Finding]:
    """A wish to cancel or to pause wakes who is suspended."""
    for id, mails in batch.mail.items():
        row = batch.executions.get(id)
        if row is None or row["status"] != "suspended" or (row["wake"] is not None and row["wake"] <= batch.now):
            continue
        for one in mails:
            if one["kind"] in ("cancel", "pause"):
                found = f"a wish to {one['kind']} is in its mailbox (mail {one['seq']}), and nothing wakes it"
                yield Finding(14, str(id), found, "Set its wake to now")
                break


CHECKS = (i13_counted, i14_woken)
