"""INSERT, UPDATE and DELETE: what they wait for, what they look at again after a wait, and which triggers follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define

from tests.simulation.postgres.expressions import FIRST, Code, Environment, Node, Relation, Scope, expression, of_type
from tests.simulation.postgres.queries import Columns, From, Query, Step, common_tables, fresh, joined, query, still, table_name, targets
from tests.simulation.postgres.tables import NO_KEY_UPDATE, UPDATE, Table, Unique, Version
from tests.simulation.postgres.transactions import Transaction, add, lock, newest, remove, write
from tests.simulation.postgres.values import Composite, Unsupported, fail


def change(node: Node, parent: Scope | None, catalog: Any) -> Query:
    ((kind, body),) = node.items()
    scope = Scope(parent.catalog if parent is not None else catalog, parent)
    commons = common_tables(body.get("withClause"), scope)
    made = {"InsertStmt": Insert, "UpdateStmt": Update, "DeleteStmt": Delete}[kind](body, scope)
    columns: Columns = [(name, code.type) for name, code in made.returning]

    def work(call: Any, outer: Any, most: int) -> list[Any]:
        for common in commons:
            common(call, outer)
        after: list[Callable[[], None]] = []
        found, count = made.run(call, outer, after)
        call.count = count
        for trigger in after:
            trigger()
        return found

    return Query(columns, work)


@define(eq=False)
class Rules:
    """What a table asks of its rows."""

    table: Table
    checks: list[tuple[str, Callable[[Environment], Any]]]

    @classmethod
    def of(cls, table: Table, catalog: Any) -> Rules:
        relation = Relation(table.name.rpartition(".")[2], [(column.name, column.type) for column in table.columns], FIRST)
        return cls(table, [(name, expression(node, Scope(catalog, None, [relation])).run) for name, node in table.checks])

    def check(self, call: Any, values: list[Any]) -> None:
        short = self.table.name.rpartition(".")[2]
        for column, value in zip(self.table.columns, values, strict=True):
            if value is None and column.required:
                message = f'null value in column "{column.name}" of relation "{short}" violates not-null constraint'
                raise fail("23502", message, schema=self.table.name.rpartition(".")[0], table=short, column=column.name)
        for name, run in self.checks:
            if run([call, None, None, None, values]) is False:
                raise fail("23514", f'new row for relation "{short}" violates check constraint "{name}"', table=short, constraint=name)


def _twin(call: Any, table: Table, uniques: list[Unique], values: list[Any]) -> Version | None:
    """A row that has the same key; waits for who is about to add, change or delete one."""
    transaction: Transaction = call.session.transaction
    rows = call.session.model.rows[table.name]
    while True:
        waited = False
        for unique in uniques:
            key = [values[column] for column in unique.columns]
            if None in key or (unique.predicate is not None and not unique.predicate([call, None, None, None, values])):
                continue
            for row in rows.find(unique.columns[0], key[0]):
                for version in list(row.versions):
                    if [version[column] for column in unique.columns] != key:
                        continue
                    if unique.predicate is not None and not unique.predicate([call, None, None, None, version]):
                        continue
                    other = _unsettled(version, transaction)
                    if other is not None:
                        call.session.wait_for(other)
                        waited = True
                        break
                    if version.xmax is None:
                        return version
                if waited:
                    break
            if waited:
                break
        if not waited:
            return None


def _unsettled(version: Version, transaction: Transaction) -> Transaction | None:
    """Who has yet to say whether this version counts."""
    if version.xmin is not transaction and version.xmin.committed is None:
        return version.xmin
    ended = version.xmax
    if ended is not None and ended is not transaction and ended.committed is None:
        return ended
    return None


def _violation(table: Table, unique: Unique, values: list[Any]) -> Exception:
    schema, _, short = table.name.rpartition(".")
    names = ", ".join(table.columns[column].name for column in unique.columns)
    shown = ", ".join(str(values[column]) for column in unique.columns)
    message = f'duplicate key value violates unique constraint "{unique.name}"'
    return fail("23505", message, detail=f"Key ({names})=({shown}) already exists.", schema=schema, table=short, constraint=unique.name)


def _check_unique(call: Any, table: Table, uniques: list[Unique], values: list[Any], own: Version | None = None) -> None:
    for unique in uniques:
        found = _twin(call, table, [unique], values)
        if found is not None and found is not own:
            raise _violation(table, unique, values)


class Insert:
    def __init__(self, body: Node, scope: Scope) -> None:
        catalog = scope.catalog
        self.catalog = catalog
        self.table = catalog.tables.get(table_name(body["relation"]))
        if self.table is None:
            raise fail("42P01", f'relation "{table_name(body["relation"])}" does not exist')
        table = self.table
        self.rules = Rules.of(table, catalog)
        self.at = [table.at(one["ResTarget"]["name"]) for one in body.get("cols", [])] or list(range(len(table.columns)))
        level = Scope(catalog, scope.parent, tables=scope.tables, variables=scope.variables)
        select = body.get("selectStmt")
        self.source = self._source(select, level) if select is not None else None
        self.defaults = [
            of_type(expression(column.default, Scope(catalog)), column.type).run if column.default is not None else None for column in table.columns
        ]
        alias = body["relation"].get("alias", {}).get("aliasname", table.name.rpartition(".")[2])
        names: Columns = [(column.name, column.type) for column in table.columns]
        scope.relations.append(Relation(alias, names, FIRST, table=table.name))
        self.returning = targets(_returned(body), scope)
        self.conflict(body.get("onConflictClause"), scope, names)

    def _source(self, select: Node, level: Scope) -> Callable[[Any, Any], list[Any]]:
        assert self.table is not None
        types = [self.table.columns[index].type for index in self.at]
        if "valuesLists" in select["SelectStmt"]:
            rows = []
            for row in select["SelectStmt"]["valuesLists"]:
                items = row["List"]["items"]
                rows.append(
                    [
                        None if "SetToDefault" in one else of_type(_loose(expression(one, level)), type).run
                        for one, type in zip(items, types, strict=False)
                    ]
                )
            return lambda call, outer: [[_DEFAULT if run is None else run(fresh(call, outer, 0)) for run in row] for row in rows]
        inner = query(select, level)
        from tests.simulation.postgres.values import caster

        casts = [caster(type) if type != inner.columns[index][1] else None for index, type in enumerate(types[: len(inner.columns)])]

        def work(call: Any, outer: Any) -> list[Any]:
            found = inner.run(call, fresh(call, outer, 0))
            return [[value if cast is None else cast(value) for value, cast in zip(row, casts, strict=True)] for row in found]

        return work

    def conflict(self, clause: Node | None, scope: Scope, names: Columns) -> None:
        self.action = clause["action"] if clause else None
        self.arbiters: list[Unique] = []
        self.updates: list[tuple[int, Callable[[Environment], Any]]] = []
        self.condition = None
        assert self.table is not None
        if clause is None:
            return
        self.arbiters = self.table.uniques
        if "infer" in clause:
            wanted = [one["IndexElem"]["name"] for one in clause["infer"].get("indexElems", [])]
            columns = {self.table.at(name) for name in wanted}
            partial = "whereClause" in clause["infer"]
            self.arbiters = [one for one in self.table.uniques if set(one.columns) == columns and (one.predicate is None or partial)]
            if not self.arbiters:
                raise fail("42P10", "there is no unique or exclusion constraint matching the ON CONFLICT specification")
        if self.action == "ONCONFLICT_UPDATE":
            inner = Scope(
                scope.catalog,
                scope.parent,
                [*scope.relations, Relation("excluded", names, FIRST + 1)],
                tables=scope.tables,
                variables=scope.variables,
            )
            self.updates = _settings(clause["targetList"], self.table, inner)
            self.condition = expression(clause["whereClause"], inner).run if "whereClause" in clause else None

    def run(self, call: Any, outer: Any, after: list[Callable[[], None]]) -> tuple[list[Any], int]:
        session, table = call.session, self.table
        assert table is not None
        given = self.source(call, outer) if self.source is not None else [[]]
        found, count = [], 0
        for row in given:
            values = self._filled(call, row)
            _before(call, self.catalog, table, "insert", None, values)
            self.rules.check(call, values)
            session.pause("insert")
            version = self._put(call, outer, values, after)
            if version is None:
                continue
            count += 1
            if self.returning:
                e = fresh(call, outer, 1)
                e[FIRST] = version
                found.append(tuple(code.run(e) for _, code in self.returning))
        return found, count

    def _filled(self, call: Any, row: Any) -> list[Any]:
        assert self.table is not None
        values: list[Any] = [_DEFAULT] * len(self.table.columns)
        for index, value in zip(self.at, row, strict=False):
            values[index] = value
        e = fresh(call, None, 0)
        for index, value in enumerate(values):
            if value is _DEFAULT:
                default = self.defaults[index]
                if self.table.columns[index].identity:
                    rows = call.session.model.rows[self.table.name]
                    rows.sequence += 1
                    values[index] = rows.sequence
                else:
                    values[index] = None if default is None else default(e)
        return values

    def _put(self, call: Any, outer: Any, values: list[Any], after: list[Callable[[], None]]) -> Version | None:
        table, transaction = self.table, call.session.transaction
        assert table is not None
        while True:
            if self.action is not None:
                twin = _twin(call, table, self.arbiters, values)
                if twin is not None:
                    if self.action == "ONCONFLICT_NOTHING":
                        return None
                    done = self._update(call, outer, twin, values, after)
                    if done is not _RETRY:
                        return done  # type: ignore[no-any-return]
                    continue
            others = [one for one in table.uniques if one not in self.arbiters] if self.action is not None else table.uniques
            _check_unique(call, table, others, values)
            if self.action is not None and others and _twin(call, table, self.arbiters, values) is not None:
                continue
            version = add(transaction, call.session.model.rows[table.name], values, call.snapshot.command)
            _after(call, self.catalog, table, "insert", None, version, after, set())
            return version

    def _update(self, call: Any, outer: Any, twin: Version, values: list[Any], after: list[Callable[[], None]]) -> Any:
        table, transaction = self.table, call.session.transaction
        assert table is not None
        if twin.xmin is transaction and twin.cmin >= call.snapshot.command:
            raise fail("21000", "ON CONFLICT DO UPDATE command cannot affect row a second time")
        mode = UPDATE if {index for index, _ in self.updates} & table.keys else NO_KEY_UPDATE
        call.session.pause("lock")
        lock(call.session, twin.row, mode)
        now = newest(twin.row, transaction)
        if now is not twin:
            return _RETRY
        e = fresh(call, outer, 2)
        e[FIRST], e[FIRST + 1] = now, values
        if self.condition is not None and not self.condition(e):
            return None
        return _rewrite(call, self.catalog, self.rules, now, self.updates, e, after)


_DEFAULT, _RETRY = object(), object()


def _loose(code: Code) -> Code:
    return Code(code.run)


def _returned(body: Node) -> list[Node]:
    if "returningClause" in body:
        return list(body["returningClause"]["exprs"])
    return list(body.get("returningList", []))


def _settings(nodes: list[Node], table: Table, scope: Scope) -> list[tuple[int, Callable[[Environment], Any]]]:
    out = []
    for node in nodes:
        body = node["ResTarget"]
        if "MultiAssignRef" in body["val"]:
            raise Unsupported("(a, b) = …")
        index = table.at(body["name"])
        code = expression(body["val"], scope)
        out.append((index, of_type(code if code.type == table.columns[index].type else _loose(code), table.columns[index].type).run))
    return out


def _rewrite(
    call: Any,
    catalog: Any,
    rules: Rules,
    now: Version,
    updates: list[tuple[int, Callable[[Environment], Any]]],
    e: Environment,
    after: list[Callable[[], None]],
) -> Version:
    """Another version of a row that is locked."""
    table = rules.table
    values = list(now)
    for index, run in updates:
        values[index] = run(e)
    _before(call, catalog, table, "update", now, values)
    rules.check(call, values)
    changed = {index for index, _ in updates}
    moved = [unique for unique in table.uniques if _moves(call, unique, now, values)]
    if moved:
        _check_unique(call, table, moved, values, now)
    version = write(call.session.transaction, now, values, call.snapshot.command)
    _after(call, catalog, table, "update", now, version, after, {table.columns[index].name for index in changed})
    return version


def _moves(call: Any, unique: Unique, before: Version, values: list[Any]) -> bool:
    if any(before[column] != values[column] for column in unique.columns):
        return True
    if unique.predicate is None:
        return False
    return bool(unique.predicate([call, None, None, None, values])) and not unique.predicate([call, None, None, None, before])


class Touching:
    """What UPDATE and DELETE have in common: rows are found first, then locked one by one, and looked at again if they have changed."""

    def __init__(self, body: Node, scope: Scope, others: str) -> None:
        self.catalog, self.scope = scope.catalog, scope
        name = table_name(body["relation"])
        found = scope.catalog.tables.get(name)
        if found is None:
            raise fail("42P01", f'relation "{name}" does not exist')
        self.table: Table = found
        self.rules = Rules.of(self.table, self.catalog)
        self.source = From(scope)
        for item in body.get(others, []):
            self.source.add(item)
        self.source.add({"RangeVar": body["relation"]})
        self.target: Step = self.source.steps[-1]
        self.source.where(body.get("whereClause"))
        self.returning = self._targets(body)

    def _targets(self, body: Node) -> list[tuple[str, Code]]:
        nodes = _returned(body)
        mine = Scope(self.catalog, self.scope.parent, [self.scope.relations[-1], *self.scope.relations[:-1]], tables=self.scope.tables)
        mine.variables = self.scope.variables
        return targets(nodes, mine)

    def matches(self, call: Any, outer: Any) -> list[Environment]:
        e = fresh(call, outer, len(self.scope.relations))
        kept, call.kept = call.kept, {}
        found = [e[:] for _ in joined(e, self.source.steps)]
        call.kept = kept
        return found

    def hold(self, call: Any, e: Environment, mode: Callable[[Environment], int]) -> Version | None:
        """The newest version of the row, locked, if it still is one of those that are meant."""
        slot, transaction = self.target.slot, call.session.transaction
        version: Version = e[slot]
        call.session.pause("lock")
        lock(call.session, version.row, mode(e))
        now = newest(version.row, transaction)
        if now is None or (now.xmin is transaction and now.cmin >= call.snapshot.command):
            return None  # deleted; or this very statement has changed it already
        if now is not version:
            e[slot] = now
            if not still(e, self.source.steps):
                return None
            lock(call.session, version.row, mode(e))
        return now

    def give(self, e: Environment, version: Version) -> tuple[Any, ...]:
        e[self.target.slot] = version
        return tuple(code.run(e) for _, code in self.returning)


class Update(Touching):
    def __init__(self, body: Node, scope: Scope) -> None:
        super().__init__(body, scope, "fromClause")
        self.updates = _settings(body["targetList"], self.table, scope)
        self.keyed = [(index, run) for index, run in self.updates if index in self.table.keys]

    def run(self, call: Any, outer: Any, after: list[Callable[[], None]]) -> tuple[list[Any], int]:
        found, count = [], 0
        for e in self.matches(call, outer):
            now = self.hold(call, e, self._mode)
            if now is None:
                continue
            version = _rewrite(call, self.catalog, self.rules, now, self.updates, e, after)
            count += 1
            if self.returning:
                found.append(self.give(e, version))
        return found, count

    def _mode(self, e: Environment) -> int:
        """The strongest lock only where a column of a key takes another value."""
        if not self.keyed:
            return NO_KEY_UPDATE
        before = e[self.target.slot]
        return UPDATE if any(run(e) != before[index] for index, run in self.keyed) else NO_KEY_UPDATE


class Delete(Touching):
    def __init__(self, body: Node, scope: Scope) -> None:
        super().__init__(body, scope, "usingClause")

    def run(self, call: Any, outer: Any, after: list[Callable[[], None]]) -> tuple[list[Any], int]:
        found, count = [], 0
        for e in self.matches(call, outer):
            now = self.hold(call, e, lambda e: UPDATE)
            if now is None:
                continue
            _before(call, self.catalog, self.table, "delete", now, None)
            remove(call.session.transaction, now, call.snapshot.command)
            _after(call, self.catalog, self.table, "delete", now, None, after, set())
            count += 1
            if self.returning:
                found.append(self.give(e, now))
        return found, count


# Triggers


def _before(call: Any, catalog: Any, table: Table, event: str, old: Version | None, new: list[Any] | None) -> None:
    for trigger in call.session.model.catalog.triggers.get(table.name, ()):
        if trigger.timing == "before" and trigger.row and event in trigger.events and trigger.concerns(call, old, new):
            trigger.fire(call, _record(table, old), _record(table, new))


def _after(
    call: Any, catalog: Any, table: Table, event: str, old: Version | None, new: Version | None, after: list[Callable[[], None]], columns: set[str]
) -> None:
    for trigger in call.session.model.catalog.triggers.get(table.name, ()):
        if trigger.timing != "after" or not trigger.row or event not in trigger.events:
            continue
        if event == "update" and trigger.columns and not columns & trigger.columns:
            continue
        if trigger.concerns(call, old, new):
            after.append(lambda trigger=trigger: trigger.fire(call, _record(table, old), _record(table, new)))  # type: ignore[misc]


def _record(table: Table, values: Any) -> Composite:
    return Composite([], []) if values is None else Composite([column.name for column in table.columns], list(values))
