"""A batch of turns as columns, and the statements that take them: how they go to the commit functions.

asyncpg takes longer over each element of an array than Python over joining them and Postgres over taking them apart. So a column goes as one text:
as an array literal where its values are plain, else joined by something that none of them holds. Bytes stay arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from flowdsl.journal import Entry

if TYPE_CHECKING:
    from flowdsl.postgres.committer import Commit

_UUIDS: Final = "${}::text::uuid[]"
_INTS: Final = "${}::text::integer[]"
_KINDS: Final = "${}::text::smallint[]"
_FLAGS: Final = "${}::text::boolean[]"
_TIMES: Final = "${}::text::timestamptz[]"
_WORDS: Final = "${}::text::text[]"
_TEXTS: Final = "(string_to_array(${}, $2))[2:]"  # each begins with what stands between them: else one empty text could not be told from none
_AS_IS: Final = "${}"


def _call(function: str, *forms: str) -> str:
    """The call of a function with the worker, then these columns; $2 is what stands between joined texts."""
    return f"select flowdsl.{function}($1, {', '.join(form.format(index) for index, form in enumerate(forms, 3))})"


_ENTRIES: Final = (_KINDS, _TIMES, _TEXTS, _TEXTS, _TEXTS, _AS_IS)
_MINE: Final = "with mine as (select w.id from flowdsl.workers w where w.id = $1::uuid and not w.gone for key share)"
_ENTRY: Final = (
    " insert into flowdsl.journal (execution, position, epoch, kind, at, step, fingerprint, site, body, live)"
    " select x.id, $3::integer, $4::integer, $5::smallint, $6::timestamptz, $7::text, $8::text, $9::text, $10::bytea, $11::text::int4multirange"
)
_APPEND_ONE: Final = (  # no functions: alone, their calls cost a tenth of a step
    f"{_MINE}{_ENTRY} from mine, flowdsl.executions x where x.id = $2::uuid and x.epoch = $4::integer and x.owner = mine.id returning true"
)
_APPEND_LAST: Final = (
    f"{_MINE}, ended as ("
    "update flowdsl.executions x set status = $12::text, owner = null, wake = null, deaths = 0, exit = $13::bytea, cause = $14::text,"
    " ended = clock_timestamp()"
    " from mine where x.id = $2::uuid and x.epoch = $4::integer and x.owner = mine.id returning x.id)"
    f"{_ENTRY} from ended x returning true"
)
_APPEND: Final = _call("append", _UUIDS, _INTS, _INTS, _FLAGS, *_ENTRIES, _AS_IS, *(_UUIDS, _WORDS, _AS_IS, _AS_IS), *(_UUIDS, _INTS), _AS_IS)
_COMMIT: Final = _call(
    "commit",
    *(_UUIDS, _INTS, _INTS, _WORDS, _TIMES, _INTS, _AS_IS, _AS_IS),  # turns
    *(_UUIDS, _INTS, _INTS, *_ENTRIES, _AS_IS),
    *(_UUIDS, _UUIDS, _TEXTS, _TEXTS, _INTS, _AS_IS, _TEXTS, _FLAGS),  # children
    *(_UUIDS, _INTS),  # mail that is taken
    *(_UUIDS, _TEXTS, _TEXTS, _TEXTS, _AS_IS, _TEXTS),  # mail that is sent
    *(_UUIDS, _TEXTS),  # scopes that are cancelled
    *(_UUIDS, _TEXTS, _TEXTS, _AS_IS),  # audit
    _FLAGS,  # children again: whether they are terminated with their parent
    _AS_IS,
)


def append_one(worker: str, commit: Commit) -> tuple[Any, ...]:
    """The statement that records a turn of one entry, and perhaps an end, for who is alone; with its parameters. It gives true, or nothing: then
    `append` says why."""
    (entry,) = commit.turn.entries
    given = (
        *(worker, commit.execution, entry.position, commit.epoch, entry.kind),
        *(entry.at, entry.step, entry.fingerprint, entry.site, entry.body),
        None if entry.live is None else _ranges(entry.live),
    )
    return (_APPEND_ONE, *given) if commit.state is None else (_APPEND_LAST, *given, commit.state, commit.exit, commit.cause)


def append(worker: str, batch: Sequence[Commit], careful: bool) -> tuple[Any, ...]:
    """The statement that records turns of entries, mail that is taken and ends, and nothing else, with its parameters."""
    heads: list[str] = []
    for commit in batch:
        heads += ["t", *"f" * (len(commit.turn.entries) - 1)]
    entries = _Entries(batch)
    between = _between(*entries.texts)
    ends = [commit for commit in batch if commit.state is not None]
    return (
        *(_APPEND, worker, between, *entries.places, _array(heads), *entries.facts(between), careful),
        _array([commit.execution for commit in ends]),
        _array([str(commit.state) for commit in ends]),
        [commit.exit for commit in ends],
        _given([commit.cause for commit in ends]),
        *_takes(batch),
        entries.live,
    )


def commit(worker: str, batch: Sequence[Commit], careful: bool) -> tuple[Any, ...]:
    """The statement that records turns whatever they hold, with its parameters."""
    entries = _Entries(batch)
    children = [(commit, child) for commit in batch for child in commit.turn.children]
    mails = [(commit.execution, mail) for commit in batch for mail in commit.turn.mails]
    scopes = [(commit.execution, f"{scope}." if scope else "") for commit in batch for scope in commit.turn.cancels]
    audits = [(commit, event, facts) for commit in batch for event, facts in commit.turn.audits]
    of_children = [[commit.tenant for commit, _ in children], [child.workflow for _, child in children], [child.step for _, child in children]]
    of_mails = [[getattr(mail, part) for _, mail in mails] for part in ("to", "kind", "name", "delivery")]
    of_scopes = [scope for _, scope in scopes]
    of_audits = [[commit.tenant for commit, _, _ in audits], [event for _, event, _ in audits]]
    between = _between(*entries.texts, *of_children, *of_mails, of_scopes, *of_audits)
    tenants, workflows, steps = (_joined(texts, between) for texts in of_children)
    to, kinds, names, deliveries = (_joined(texts, between) for texts in of_mails)
    return (
        *(_COMMIT, worker, between),
        _array([commit.execution for commit in batch]),
        _array([str(commit.epoch) for commit in batch]),
        _array([str(commit.turn.entries[0].position) if commit.turn.entries else "NULL" for commit in batch]),
        _array([commit.state or "NULL" for commit in batch]),
        _array(["NULL" if commit.wake is None else commit.wake.isoformat() for commit in batch]),
        _array([str(commit.seen) for commit in batch]),
        _given([commit.exit for commit in batch]),
        _given([commit.cause for commit in batch]),
        *entries.places,
        *entries.facts(between),
        entries.live,
        _array([child.id for _, child in children]),
        _array([commit.execution for commit, _ in children]),
        *(tenants, workflows),
        _array([str(child.version) for _, child in children]),
        [child.request for _, child in children],
        steps,
        _array(["t" if child.detached else "f" for _, child in children]),
        *_takes(batch),
        _array([execution for execution, _ in mails]),
        *(to, kinds, names),
        [mail.body for _, mail in mails],
        deliveries,
        _array([execution for execution, _ in scopes]),
        _joined(of_scopes, between),
        _array([commit.execution for commit, _, _ in audits]),
        *(_joined(texts, between) for texts in of_audits),
        [facts for _, _, facts in audits],
        _array(["t" if child.terminates else "f" for _, child in children]),
        careful,
    )


class _Entries:
    """The entries of a batch, one under the other."""

    __slots__ = ("all", "places", "texts")

    def __init__(self, batch: Sequence[Commit]) -> None:
        self.all: list[Entry] = []
        executions: list[str] = []
        epochs: list[str] = []
        for commit in batch:
            count = len(commit.turn.entries)
            executions += [commit.execution] * count
            epochs += [str(commit.epoch)] * count
            self.all += commit.turn.entries
        self.places = (_array(executions), _array([str(entry.position) for entry in self.all]), _array(epochs))
        self.texts = (
            [entry.step for entry in self.all],
            [entry.fingerprint for entry in self.all],
            [entry.site for entry in self.all],
        )

    @property
    def live(self) -> list[str | None]:
        return _given([None if entry.live is None else _ranges(entry.live) for entry in self.all])

    def facts(self, between: str) -> tuple[Any, ...]:
        return (
            _array([str(entry.kind) for entry in self.all]),
            _array([entry.at.isoformat() for entry in self.all]),
            *(_joined(texts, between) for texts in self.texts),
            [entry.body for entry in self.all],
        )


def _takes(batch: Sequence[Commit]) -> tuple[str, str]:
    """The mail that is taken: whose, and which."""
    takes = [(commit.execution, str(seq)) for commit in batch for seq in commit.turn.takes]
    return _array([execution for execution, _ in takes]), _array([seq for _, seq in takes])


def _between(*columns: Sequence[str]) -> str:
    """What none of them holds. Its first character is nowhere else in it: a value's end and its beginning never make another of it."""
    between = "\x1f"
    while any(between in "".join(column) for column in columns):
        between += "\x1e"
    return between


def _joined(texts: Sequence[str], between: str) -> str:
    return between + between.join(texts) if texts else ""


def _array(values: Iterable[str]) -> str:
    return "{" + ",".join(values) + "}"


def _given(values: list[Any]) -> list[Any]:
    """The column; where all of it is null, nothing: Postgres fills up what is short."""
    return values if any(value is not None for value in values) else []


def _ranges(live: tuple[tuple[int, int], ...]) -> str:
    return "{" + ",".join(f"[{low},{high})" for low, high in live) + "}"
