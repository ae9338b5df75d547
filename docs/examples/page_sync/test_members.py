from datetime import date

from members import Append, Member, Page, Sync, append_rows, fetch_page, sync_members

from flowdsl import Success

ANN, BOB, CEM = Member(1, "Ann"), Member(2, "Bob"), Member(3, "Cem")
PAGES = {1: Page((ANN, BOB), following=2), 2: Page((CEM,), following=None)}


def test_each_member_arrives_once_whatever_crashes(fake):
    table, seen = [], set()

    def append(rows: Append):
        if rows.insert_id is None or rows.insert_id not in seen:
            table.extend(rows.rows)
        seen.add(rows.insert_id)
        return Success(None)

    fake.on(fetch_page, lambda page: Success(PAGES[page.number]))
    fake.on(append_rows, append)
    fake.crash(everywhere=True)
    run = fake.run(sync_members, Sync("rowing", date(2026, 5, 1)))
    assert run.exit == Success(3)
    assert table == [ANN, BOB, CEM]
