"""What a database knows of itself: tables, functions, triggers; and the plans of statements, made once for all databases that are alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from attrs import define
from pglast.parser import ParseError, parse_sql_json

from tests.simulation.postgres.expressions import FIRST, Node, Relation, Scope, expression
from tests.simulation.postgres.queries import Columns, Query, query, table_name
from tests.simulation.postgres.routines import Call, Routine
from tests.simulation.postgres.tables import Column, Table, Unique
from tests.simulation.postgres.values import Composite, Unsupported, fail, type_named

ROWS = ("SelectStmt", "InsertStmt", "UpdateStmt", "DeleteStmt")
DEFINES = (
    "CreateStmt", "IndexStmt", "AlterTableStmt", "DropStmt", "CreateFunctionStmt", "CreateTrigStmt", "CreateSchemaStmt", "AlterFunctionStmt",
    "CommentStmt", "GrantStmt",
)  # fmt: skip


@define(eq=False)
class Statement:
    """One statement of a text: with rows, or else told by its kind."""

    kind: str
    node: Node
    text: str
    query: Query | None


@define(eq=False)
class Trigger:
    name: str
    table: str
    timing: str
    row: bool
    events: set[str]
    columns: set[str]
    when: Callable[[list[Any]], Any] | None
    routine: str

    def concerns(self, call: Any, old: Any, new: Any) -> bool:
        return self.when is None or self.when([call, None, None, None, old, new]) is True

    def fire(self, call: Any, old: Composite, new: Composite) -> None:
        call.session.model.catalog.routine(self.routine).trigger(call.session, old, new)


class Catalog:
    """Never changed once it is used: `derive` gives another."""

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {}
        self.routines: dict[str, Routine] = {}
        self.triggers: dict[str, list[Trigger]] = {}
        self._plans: dict[str, list[Statement]] = {}
        self._derived: dict[str, Catalog] = {}

    def routine(self, name: str) -> Routine | None:
        return self.routines.get(name)

    def virtual(self, name: str) -> tuple[Columns, Callable[[Any], list[Any]]] | None:
        return _VIRTUAL.get(name.removeprefix("pg_catalog."))

    def plan(self, text: str) -> list[Statement]:
        """The statements of a text, compiled. Raises as a server does for what it cannot read, `Unsupported` for what only we cannot."""
        found = self._plans.get(text)
        if found is None:
            found = self._plans[text] = self._read(text)
        return found

    def _read(self, text: str) -> list[Statement]:
        try:
            nodes = json.loads(parse_sql_json(text))["stmts"]
        except ParseError as error:
            raise fail("42601", str(error)) from error
        out = []
        for one in nodes:
            ((kind, _),) = one["stmt"].items()
            start = one.get("stmt_location", 0)
            length = one.get("stmt_len")
            raw = text.encode()
            part = (raw[start : start + length] if length else raw[start:]).decode()
            try:
                made = query(one["stmt"], None, self) if kind in ROWS and len(nodes) == 1 else None
            except Unsupported as error:
                raise Unsupported(f"{error}; in: {part.strip()}") from error
            out.append(Statement(kind, one["stmt"], part, made))
        return out

    # Definitions

    def derive(self, text: str) -> Catalog:
        """The catalog after such a text of definitions."""
        found = self._derived.get(text)
        if found is None:
            found = self._derived[text] = self._copy()
            for one in found._read_only(text):
                found._define(one)
        return found

    def _read_only(self, text: str) -> list[Statement]:
        nodes, raw, out = json.loads(parse_sql_json(text))["stmts"], text.encode(), []
        for one in nodes:
            start, length = one.get("stmt_location", 0), one.get("stmt_len")
            out.append(Statement(next(iter(one["stmt"])), one["stmt"], (raw[start : start + length] if length else raw[start:]).decode(), None))
        return out

    def _copy(self) -> Catalog:
        made = Catalog()
        made.tables = {name: table.copy() for name, table in self.tables.items()}
        made.routines = {name: routine.again(made) for name, routine in self.routines.items()}
        made.triggers = {name: list(found) for name, found in self.triggers.items()}
        return made

    def _define(self, statement: Statement) -> None:
        body = statement.node[statement.kind]
        match statement.kind:
            case "CreateStmt":
                self._create(body)
            case "IndexStmt":
                self._index(body)
            case "AlterTableStmt":
                self._alter(body)
            case "DropStmt":
                self._drop(body)
            case "CreateFunctionStmt":
                made = Routine(statement.node, statement.text, self)
                self.routines[made.name] = made
            case "CreateTrigStmt":
                self._trigger(body)
            case _:
                pass

    def _create(self, body: Node) -> None:
        name = table_name(body["relation"])
        if name in self.tables:
            if body.get("if_not_exists"):
                return
            raise fail("42P07", f'relation "{name}" already exists')
        table = self.tables[name] = Table(name, [])
        for one in body.get("tableElts", []):
            if "ColumnDef" in one:
                self._column(table, one["ColumnDef"])
            else:
                self._constraint(table, one["Constraint"])

    def _column(self, table: Table, body: Node) -> None:
        column = Column(body["colname"], type_named(body["typeName"]))
        table.columns.append(column)
        for one in body.get("constraints", []):
            constraint = one["Constraint"]
            match constraint["contype"]:
                case "CONSTR_NOTNULL":
                    column.required = True
                case "CONSTR_DEFAULT":
                    column.default = constraint["raw_expr"]
                case "CONSTR_IDENTITY":
                    column.identity = column.required = True
                case _:
                    self._constraint(table, constraint, column.name)

    def _constraint(self, table: Table, body: Node, column: str | None = None) -> None:
        short = table.name.rpartition(".")[2]
        match body["contype"]:
            case "CONSTR_PRIMARY" | "CONSTR_UNIQUE":
                names = [one["String"]["sval"] for one in body["keys"]] if "keys" in body else [column or ""]
                primary = body["contype"] == "CONSTR_PRIMARY"
                name = body.get("conname") or (f"{short}_pkey" if primary else f"{short}_{'_'.join(names)}_key")
                self._unique(table, Unique(name, tuple(table.at(one) for one in names)))
                for one in names if primary else []:
                    table.columns[table.at(one)].required = True
            case "CONSTR_CHECK":
                count = len([name for name, _ in table.checks])
                default = f"{short}_{column}_check" if column else f"{short}_check{count or ''}"
                table.checks.append((body.get("conname") or default, body["raw_expr"]))
            case _:
                pass  # a foreign key: there is none in our tables

    def _unique(self, table: Table, unique: Unique) -> None:
        table.uniques.append(unique)
        if unique.columns[0] not in table.lookups:
            table.lookups.append(unique.columns[0])

    def _index(self, body: Node) -> None:
        table = self.tables[table_name(body["relation"])]
        names = [one["IndexElem"].get("name") for one in body["indexParams"]]
        if None in names:
            return
        columns = tuple(table.at(name) for name in names)
        if body.get("unique"):
            relation = Relation(table.name.rpartition(".")[2], [(column.name, column.type) for column in table.columns], FIRST)
            where = expression(body["whereClause"], Scope(self, None, [relation])).run if "whereClause" in body else None
            self._unique(table, Unique(body["idxname"], columns, where))
        elif columns[0] not in table.lookups:
            table.lookups.append(columns[0])

    def _alter(self, body: Node) -> None:
        table = self.tables[table_name(body["relation"])]
        for one in body["cmds"]:
            command = one["AlterTableCmd"]
            match command["subtype"]:
                case "AT_AddColumn":
                    self._column(table, command["def"]["ColumnDef"])
                case "AT_AddConstraint":
                    self._constraint(table, command["def"]["Constraint"])
                case "AT_DropConstraint":
                    table.checks = [check for check in table.checks if check[0] != command["name"]]
                    table.uniques = [unique for unique in table.uniques if unique.name != command["name"]]
                case "AT_EnableTrig" | "AT_DisableTrig" | "AT_DisableTrigAll" | "AT_EnableTrigAll" | "AT_SetRelOptions":
                    self._switch(table.name, command)
                case other:
                    raise Unsupported(f"alter table: {other}")

    def _switch(self, table: str, command: Node) -> None:
        if command["subtype"] in ("AT_DisableTrig", "AT_DisableTrigAll"):
            self.triggers[table] = [one for one in self.triggers.get(table, []) if "name" in command and one.name != command["name"]]

    def _drop(self, body: Node) -> None:
        for item in body["objects"]:
            match body["removeType"]:
                case "OBJECT_TABLE":
                    name = ".".join(one["String"]["sval"] for one in item["List"]["items"])
                    self.tables.pop(name, None)
                    self.triggers.pop(name, None)
                case "OBJECT_TRIGGER":
                    *table, trigger = [one["String"]["sval"] for one in item["List"]["items"]]
                    name = ".".join(table)
                    self.triggers[name] = [one for one in self.triggers.get(name, []) if one.name != trigger]
                case _:
                    pass  # a function is replaced by the one of its name; an index is no promise

    def _trigger(self, body: Node) -> None:
        table = self.tables[table_name(body["relation"])]
        bits = body.get("events", 0)
        events = {name for bit, name in ((4, "insert"), (8, "delete"), (16, "update"), (32, "truncate")) if bits & bit}
        columns = [(column.name, column.type) for column in table.columns]
        scope = Scope(self, None, [Relation("old", columns, FIRST), Relation("new", columns, FIRST + 1)])
        when = expression(body["whenClause"], scope).run if "whenClause" in body else None
        named = {one["String"]["sval"] for one in body.get("columns", [])}
        routine = ".".join(one["String"]["sval"] for one in body["funcname"])
        timing = "before" if body.get("timing", 0) & 2 else "after"
        made = Trigger(body["trigname"], table.name, timing, bool(body.get("row")), events, named, when, routine)
        found = self.triggers.setdefault(table.name, [])
        found.append(made)
        found.sort(key=lambda one: one.name)


# What a server tells of itself


def _settings(session: Any) -> list[Any]:
    return [(name, value) for name, value in session.model.settings.items()]


def _activity(session: Any) -> list[Any]:
    model = session.model
    return [
        (one.pid, one.name, model.name, "active" if one.busy else "idle in transaction" if one.transaction is not None else "idle",
         one.transaction.began if one.transaction is not None else None)
        for one in model.sessions.values()
    ]  # fmt: skip


def _classes(session: Any) -> list[tuple[int, str, str, Table]]:
    found = sorted(session.model.catalog.tables.items())
    return [(number, *name.rpartition(".")[::2], table) for number, (name, table) in enumerate(found, 1)]


def _indexes(session: Any) -> list[Any]:
    return [
        (number, [column + 1 for column in unique.columns], True, True, True, True)
        for number, _, _, table in _classes(session)
        for unique in table.uniques
    ]


def _attributes(session: Any) -> list[Any]:
    return [(number, column.name, place) for number, _, _, table in _classes(session) for place, column in enumerate(table.columns, 1)]


_VIRTUAL: dict[str, tuple[Columns, Callable[[Any], list[Any]]]] = {
    "pg_settings": ([("name", "text"), ("setting", "text")], _settings),
    "pg_control_system": ([("system_identifier", "int8")], lambda session: [(session.model.system,)]),
    "pg_stat_activity": (
        [("pid", "int4"), ("application_name", "text"), ("datname", "text"), ("state", "text"), ("xact_start", "timestamptz")],
        _activity,
    ),
    "pg_class": (
        [("oid", "oid"), ("relname", "text"), ("relnamespace", "text"), ("reltuples", "float8")],
        lambda session: [(number, name, schema, -1.0) for number, schema, name, _ in _classes(session)],
    ),
    "pg_namespace": ([("oid", "text"), ("nspname", "text")], lambda session: [("flowdsl", "flowdsl"), ("", "public")]),
    "pg_attribute": ([("attrelid", "oid"), ("attname", "text"), ("attnum", "int2")], _attributes),
    "pg_index": (
        [("indrelid", "oid"), ("indkey", None), ("indisunique", "bool"), ("indisvalid", "bool"), ("indisready", "bool"), ("indislive", "bool")],
        _indexes,
    ),
    "pg_database": ([("datname", "text"), ("datfrozenxid", "int8")], lambda session: [(session.model.name, 0)]),
    "pg_replication_slots": ([("slot_name", "text"), ("active", "bool")], lambda session: []),
    "pg_stat_replication": ([("application_name", "text")], lambda session: []),
}

__all__ = ["DEFINES", "ROWS", "Call", "Catalog", "Statement", "Trigger"]
