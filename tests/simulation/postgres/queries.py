"""SELECT: what it reads, in which order, what it locks on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from attrs import define, field

from tests.simulation.postgres import functions
from tests.simulation.postgres.expressions import (
    FIRST,
    Code,
    Environment,
    Node,
    Ordering,
    Relation,
    Scope,
    alike,
    arguments,
    expression,
    name_of,
    of_type,
    operator,
    ordering,
)
from tests.simulation.postgres.tables import KEY_SHARE, NO_KEY_UPDATE, SHARE, UPDATE, Row, Version
from tests.simulation.postgres.transactions import lock, newest
from tests.simulation.postgres.values import Composite, Unsupported, fail, of_array, type_named

Columns = list[tuple[str, str | None]]
_STRENGTH = {"LCS_FORUPDATE": UPDATE, "LCS_FORNOKEYUPDATE": NO_KEY_UPDATE, "LCS_FORSHARE": SHARE, "LCS_FORKEYSHARE": KEY_SHARE}
_POLICY = {"LockWaitSkip": "skip", "LockWaitError": "nowait"}
MANY = 1 << 60


@define(eq=False)
class Step:
    """One item of FROM: where its rows come from, and what they must satisfy."""

    relation: Relation
    source: Callable[[Environment], Iterable[Any]]
    left: bool = False
    on: list[Callable[[Environment], Any]] = field(factory=list)
    after: list[Callable[[Environment], Any]] = field(factory=list)
    table: str | None = None

    @property
    def slot(self) -> int:
        return self.relation.slot


@define(eq=False)
class Query:
    """Something that gives rows."""

    columns: Columns
    work: Callable[[Any, Any, int], list[Any]]

    def run(self, call: Any, outer: Any, most: int = MANY) -> list[Any]:
        return self.work(call, outer, most)


def table_name(node: Node) -> str:
    return f"{node['schemaname']}.{node['relname']}" if "schemaname" in node else node["relname"]


class From:
    """The FROM list of one query: its steps, in the order of their loops."""

    def __init__(self, scope: Scope) -> None:
        self.scope, self.steps = scope, list[Step]()
        self._conditions: list[Node] = []

    def add(self, node: Node, on: list[Node] | None = None, *, left: bool = False) -> None:
        ((kind, body),) = node.items()
        if kind == "RangeTableSample":  # a sample of all of them
            return self.add(body["relation"], on, left=left)
        if kind == "JoinExpr":
            self.add(body["larg"])
            if body["jointype"] not in ("JOIN_INNER", "JOIN_LEFT") or (body["jointype"] == "JOIN_LEFT" and "JoinExpr" in body["rarg"]):
                raise Unsupported(body["jointype"])
            quals = [body["quals"]] if "quals" in body else []
            if body["jointype"] == "JOIN_LEFT":
                self.add(body["rarg"], quals, left=True)
            else:
                self.add(body["rarg"])
                self._conditions += [part for one in quals for part in conjuncts(one)]
            return
        maker = {"RangeVar": self._table, "RangeSubselect": self._subselect, "RangeFunction": self._function}[kind]
        step = maker(body)
        step.left = left
        self.steps.append(step)
        self.scope.relations.append(step.relation)
        if on:
            parts = [part for one in on for part in conjuncts(one)]
            step.on = [expression(part, self.scope).run for part in parts]
            self._indexed(step, parts)

    def where(self, node: Node | None) -> None:
        """Every condition is tested as soon as what it is about is there."""
        conditions = self._conditions + (conjuncts(node) if node is not None else [])
        placed: dict[int, list[Node]] = {}
        for part in conditions:
            code = of_type(expression(part, self.scope), "bool")
            place = max(self._about(part), default=FIRST)
            step = next((one for one in self.steps if one.slot == place), None)
            if step is None:
                self.steps[:0] = [Step(Relation("", [], FIRST), lambda e: [()])]
                step = self.steps[0]
            if any(one.left and one.slot >= place for one in self.steps):
                self.steps[-1].after.append(code.run)
            else:
                step.after.append(code.run)
            placed.setdefault(place, []).append(part)
        for step in self.steps:
            if not step.left:
                self._indexed(step, placed.get(step.slot, []))

    def _about(self, node: Any) -> set[int]:
        """The places of all relations that it may be about."""
        found: set[int] = set()
        if isinstance(node, dict):
            fields = node.get("ColumnRef", {}).get("fields") if "ColumnRef" in node else None
            if fields is not None:
                names = [one["String"]["sval"] if "String" in one else "*" for one in fields]
                for relation in self.scope.relations:
                    if (len(names) > 1 and names[-2] == relation.name) or (
                        len(names) == 1 and (names[0] == relation.name or any(names[0] == column for column, _ in relation.columns))
                    ):
                        found.add(relation.slot)
                        if len(names) == 1:
                            break
                return found
            for value in node.values():
                found |= self._about(value)
        elif isinstance(node, list):
            for value in node:
                found |= self._about(value)
        return found

    def _indexed(self, step: Step, parts: list[Node]) -> None:
        """Rows are looked up where a column that has an index is to be equal to something that is known by then."""
        if step.table is None:
            return
        table = self.scope.catalog.tables[step.table]
        for part in parts:
            body = part.get("A_Expr")
            if body is None or body["name"][-1]["String"]["sval"] != "=" or body["kind"] not in ("AEXPR_OP", "AEXPR_OP_ANY"):
                continue
            sides = [(body["lexpr"], body["rexpr"])] + ([(body["rexpr"], body["lexpr"])] if body["kind"] == "AEXPR_OP" else [])
            for mine, other in sides:
                column = self._own(mine, step, table)
                if column is None or any(place >= step.slot for place in self._about(other)):
                    continue
                many = body["kind"] == "AEXPR_OP_ANY"
                type = table.columns[column].type
                code = of_type(expression(other, self.scope), f"{type}[]" if many else type)
                step.source = _found(step.table, column, code.run, many)
                return

    def _own(self, node: Node, step: Step, table: Any) -> int | None:
        fields = node.get("ColumnRef", {}).get("fields") if "ColumnRef" in node else None
        if fields is None or any("String" not in one for one in fields) or self._about(node) != {step.slot}:
            return None
        name = fields[-1]["String"]["sval"]
        return next((column for column in table.lookups if table.columns[column].name == name), None)

    def _slot(self) -> int:
        return FIRST + len(self.scope.relations)

    def _named(self, body: Node, name: str, columns: Columns, **more: Any) -> Relation:
        alias = body.get("alias", {})
        names = [one["String"]["sval"] for one in alias.get("colnames", [])]
        renamed = [(names[index] if index < len(names) else column, type) for index, (column, type) in enumerate(columns)]
        return Relation(alias.get("aliasname", name), renamed, self._slot(), **more)

    def _table(self, body: Node) -> Step:
        name = table_name(body)
        common = self.scope.find_table(name)
        if common is not None:
            return Step(self._named(body, name, common.columns), lambda e: e[0].common[common])
        table = self.scope.catalog.tables.get(name)
        if table is None:
            virtual = self.scope.catalog.virtual(name)
            if virtual is None:
                raise fail("42P01", f'relation "{name}" does not exist')
            columns, rows = virtual
            return Step(self._named(body, name, columns), lambda e: rows(e[0].session))
        columns = [(column.name, column.type) for column in table.columns]
        relation = self._named(body, name.rpartition(".")[2], columns, table=name)
        return Step(relation, lambda e: e[0].session.model.rows[name].visible(e[0].snapshot), table=name)

    def _subselect(self, body: Node) -> Step:
        around = (
            self.scope
            if body.get("lateral")
            else Scope(self.scope.catalog, self.scope.parent, tables=self.scope.tables, variables=self.scope.variables)
        )
        inner = query(body["subquery"], around)
        relation = self._named(body, "", inner.columns)
        if body.get("lateral"):
            return Step(relation, lambda e: inner.run(e[0], e))
        slot = relation.slot

        def once(e: Environment) -> Iterable[Any]:
            kept = e[0].kept
            key = (slot, inner)
            if key not in kept:
                kept[key] = inner.run(e[0], e)
            return kept[key]  # type: ignore[no-any-return]

        return Step(relation, once if self.steps else lambda e: inner.run(e[0], e))

    def _function(self, body: Node) -> Step:
        call = body["functions"][0]["List"]["items"][0]["FuncCall"]
        name = name_of(call)
        ordinal = body.get("ordinality", False)
        routine = self.scope.catalog.routine(name)
        if routine is not None:
            runs = arguments(call, routine, self.scope)
            columns = (
                list(routine.columns)
                if routine.columns is not None
                else [(body.get("alias", {}).get("aliasname", name.rpartition(".")[2]), routine.returns)]
            )
            relation = self._named(body, name.rpartition(".")[2], columns, scalar=routine.columns is None)
            return Step(relation, lambda e: routine.rows(e[0], [run(e) for run in runs]))
        virtual = self.scope.catalog.virtual(name)
        if virtual is not None:
            told, rows_of = virtual
            return Step(self._named(body, name, told), lambda e: rows_of(e[0].session))
        codes = [expression(one, self.scope) for one in call.get("args", [])]
        if functions.rows_of(name, [None] * len(codes)) is None:
            code = functions.call(name, codes, [])
            alias = body.get("alias", {}).get("aliasname", name)
            return Step(self._named(body, name, [(alias, code.type)], scalar=True), lambda e: [(code.run(e),)])
        alias = body.get("alias", {}).get("aliasname", name)
        columns = [(alias if len(codes) == 1 else name, _item(name, code.type)) for code in (codes if name == "unnest" else codes[:1])]
        if ordinal:
            columns.append(("ordinality", "int8"))
        relation = self._named(body, name, columns, scalar=len(columns) == 1)
        return Step(relation, _together(name, codes, ordinal))


def _item(name: str, type: str | None) -> str | None:
    return "int4range" if type == "int4multirange" else of_array(type) if name == "unnest" else "int4"


def _together(name: str, codes: list[Code], ordinal: bool) -> Callable[[Environment], Iterable[Any]]:
    runs = [code.run for code in codes]

    def rows(e: Environment) -> Iterable[Any]:
        columns = functions.rows_of(name, [run(e) for run in runs]) or []
        if len(columns) == 1 and not ordinal:
            return [(value,) for value in columns[0]]
        length = max(map(len, columns), default=0)
        padded = [column if len(column) == length else column + [None] * (length - len(column)) for column in columns]
        if ordinal:
            padded.append(list(range(1, length + 1)))
        return list(zip(*padded, strict=True))

    return rows


def _found(table: str, column: int, run: Callable[[Environment], Any], many: bool) -> Callable[[Environment], Iterable[Any]]:
    def rows(e: Environment) -> Iterable[Any]:
        value = run(e)
        if value is None:
            return ()
        held = e[0].session.model.rows[table]
        if not many:
            return held.visible(e[0].snapshot, held.find(column, value))  # type: ignore[no-any-return]
        found: dict[int, Row] = {row.number: row for one in value for row in held.find(column, one)}
        return held.visible(e[0].snapshot, [found[number] for number in sorted(found)])  # type: ignore[no-any-return]

    return rows


def conjuncts(node: Node) -> list[Node]:
    body = node.get("BoolExpr")
    if body is not None and body["boolop"] == "AND_EXPR":
        return [part for one in body["args"] for part in conjuncts(one)]
    return [node]


def joined(e: Environment, steps: list[Step], index: int = 0) -> Iterator[None]:
    """Sets the rows in the environment, one combination after the other."""
    if index == len(steps):
        yield
        return
    step = steps[index]
    slot, matched = step.slot, False
    for row in step.source(e):
        e[slot] = row
        if step.on and not all(test(e) for test in step.on):
            continue
        matched = True
        if all(test(e) for test in step.after):
            yield from joined(e, steps, index + 1)
    if step.left and not matched:
        e[slot] = (None,) * len(step.relation.columns)
        if all(test(e) for test in step.after):
            yield from joined(e, steps, index + 1)


def still(e: Environment, steps: list[Step]) -> bool:
    """Whether a combination of rows, one of which is newer now, still satisfies all conditions."""
    return all(test(e) for step in steps for test in (*step.on, *step.after))


def fresh(call: Any, outer: Any, width: int) -> Environment:
    return [call, outer, None, None, *([None] * width)]


# Targets


def targets(nodes: list[Node], scope: Scope) -> list[tuple[str, Code]]:
    out: list[tuple[str, Code]] = []
    for node in nodes:
        body = node["ResTarget"]
        value = body["val"]
        fields = value.get("ColumnRef", {}).get("fields", []) if "ColumnRef" in value else []
        if fields and "A_Star" in fields[-1]:
            wanted = fields[-2]["String"]["sval"] if len(fields) > 1 else None
            for relation in scope.relations:
                if wanted is None or relation.name == wanted:
                    out += [(name, _cell(relation.slot, index, type)) for index, (name, type) in enumerate(relation.columns)]
            if wanted is not None and not any(relation.name == wanted for relation in scope.relations):
                raise Unsupported(f"{wanted}.*")
            continue
        out.append((body.get("name") or _name(value), expression(value, scope)))
    return out


def _cell(slot: int, index: int, type: str | None) -> Code:
    return Code(lambda e: e[slot][index], type)


def _name(node: Node) -> str:
    ((kind, body),) = node.items()
    match kind:
        case "ColumnRef":
            return str(body["fields"][-1]["String"]["sval"])
        case "FuncCall":
            return name_of(body).rpartition(".")[2]
        case "TypeCast":
            inner = _name(body["arg"])
            return inner if inner != "?column?" else type_named(body["typeName"])
        case "CaseExpr" | "CoalesceExpr":
            return kind[:-4].lower()
        case "MinMaxExpr":
            return "greatest" if body["op"] == "IS_GREATEST" else "least"
        case "A_ArrayExpr":
            return "array"
        case "SubLink":
            return {"EXISTS_SUBLINK": "exists", "ARRAY_SUBLINK": "array"}.get(body["subLinkType"]) or _inner_name(body["subselect"])
        case _:
            return "?column?"


def _inner_name(node: Node) -> str:
    only = node["SelectStmt"]["targetList"][0]["ResTarget"]
    return str(only.get("name") or _name(only["val"]))


# SELECT


def query(node: Node, parent: Scope | None, catalog: Any = None) -> Query:
    """A statement that gives rows, inside of others or by itself."""
    ((kind, body),) = node.items()
    if kind != "SelectStmt":
        from tests.simulation.postgres.changes import change

        return change(node, parent, catalog)
    scope = Scope(parent.catalog if parent is not None else catalog, parent)
    commons = common_tables(body.get("withClause"), scope)
    made = (
        _combined(body, scope)
        if body.get("op", "SETOP_NONE") != "SETOP_NONE"
        else _values(body, scope)
        if "valuesLists" in body
        else Select(body, scope).query()
    )
    return _preceded(commons, made)


def _preceded(commons: list[Callable[[Any, Any], None]], made: Query) -> Query:
    if not commons:
        return made

    def work(call: Any, outer: Any, most: int) -> list[Any]:
        for common in commons:
            common(call, outer)
        return made.run(call, outer, most)

    return Query(made.columns, work)


@define(eq=False)
class Common:
    columns: Columns


def common_tables(clause: Node | None, scope: Scope) -> list[Callable[[Any, Any], None]]:
    """The parts of WITH, in order; each is run once, before what uses it."""
    out: list[Callable[[Any, Any], None]] = []
    for node in clause["ctes"] if clause else []:
        body = node["CommonTableExpr"]
        inner = body["ctequery"]
        names = [one["String"]["sval"] for one in body.get("aliascolnames", [])]
        select = inner.get("SelectStmt", {})
        if clause is not None and clause.get("recursive") and select.get("op", "SETOP_NONE") == "SETOP_UNION":
            out.append(_recursive(body["ctename"], names, select, scope))
            continue
        made = query(inner, _level(scope))
        common = Common(_renamed(made.columns, names))
        scope.tables[body["ctename"]] = common
        out.append(_run_into(common, made))
    return out


def _level(scope: Scope) -> Scope:
    """The scope of what stands before FROM: it sees other tables of WITH, and nothing of FROM."""
    return Scope(scope.catalog, scope.parent, tables=scope.tables, variables=scope.variables)


def _renamed(columns: Columns, names: list[str]) -> Columns:
    return [(names[index] if index < len(names) else name, type) for index, (name, type) in enumerate(columns)]


def _run_into(common: Common, made: Query) -> Callable[[Any, Any], None]:
    def run(call: Any, outer: Any) -> None:
        call.common[common] = made.run(call, fresh(call, outer, 0))

    return run


def _recursive(name: str, names: list[str], select: Node, scope: Scope) -> Callable[[Any, Any], None]:
    level = _level(scope)
    start = query({"SelectStmt": select["larg"]}, level)
    common = Common(_renamed(start.columns, names))
    scope.tables[name] = common
    step, distinct = query({"SelectStmt": select["rarg"]}, level), not select.get("all")

    def run(call: Any, outer: Any) -> None:
        e = fresh(call, outer, 0)
        working = [tuple(row) for row in start.run(call, e)]
        if distinct:
            working = list(dict.fromkeys(working))
        found = list(working)
        while working:
            call.common[common] = working
            working = [tuple(row) for row in step.run(call, e)]
            if distinct:
                working = [row for row in dict.fromkeys(working) if row not in found]
            found += working
        call.common[common] = found

    return run


def _values(body: Node, scope: Scope) -> Query:
    rows = [[expression(one, _level(scope)) for one in row["List"]["items"]] for row in body["valuesLists"]]
    columns = [(f"column{index + 1}", alike([row[index] for row in rows])[1]) for index in range(len(rows[0]))]
    runs = [[code.run for code in row] for row in rows]
    return Query(columns, lambda call, outer, most: [tuple(run(fresh(call, outer, 0)) for run in row) for row in runs])


def _combined(body: Node, scope: Scope) -> Query:
    level = _level(scope)
    one, other = query({"SelectStmt": body["larg"]}, level), query({"SelectStmt": body["rarg"]}, level)
    if body["op"] != "SETOP_UNION":
        raise Unsupported(body["op"])
    every = bool(body.get("all"))
    columns = [(name, type if type not in (None, "unknown") else other.columns[index][1]) for index, (name, type) in enumerate(one.columns)]
    result = Relation("", columns, FIRST)
    keys = ordering(body["sortClause"], Scope(scope.catalog, None, [result])) if "sortClause" in body else None
    first, last = limits(body, level)

    def work(call: Any, outer: Any, most: int) -> list[Any]:
        e = fresh(call, outer, 0)
        rows = [tuple(row) for row in one.run(call, e)] + [tuple(row) for row in other.run(call, e)]
        if not every:
            rows = list(dict.fromkeys(rows))
        if keys is not None:
            rows = keys.sorted(rows, lambda row: [call, None, None, None, row])
        begin, end = first(e), last(e)
        return rows[begin : begin + end]

    return Query(columns, work)


def limits(body: Node, scope: Scope) -> tuple[Callable[[Environment], int], Callable[[Environment], int]]:
    offset = expression(body["limitOffset"], scope).run if "limitOffset" in body else None
    count = expression(body["limitCount"], scope).run if "limitCount" in body else None

    def first(e: Environment) -> int:
        return int(offset(e) or 0) if offset is not None else 0

    def most(e: Environment) -> int:
        found = count(e) if count is not None else None
        return MANY if found is None else int(found)

    return first, most


class Select:
    """One SELECT without UNION."""

    def __init__(self, body: Node, scope: Scope) -> None:
        self.scope = scope
        self.body = body
        self.source = From(scope)
        for item in body.get("fromClause", []):
            self.source.add(item)
        self.source.where(body.get("whereClause"))
        scope.aggregates, scope.windows = [], []
        self.targets = targets(body["targetList"], scope) if "targetList" in body else []
        self.columns: Columns = [(name, code.type) for name, code in self.targets]
        self.groups = [self._output(one) for one in body.get("groupClause", [])]
        self.having = expression(body["havingClause"], scope).run if "havingClause" in body else None
        self.order = ordering(body["sortClause"], scope, self._output) if "sortClause" in body else None
        self.distinct = "distinctClause" in body
        self.offset, self.limit = limits(body, _level(scope))
        self.locks = self._locks()
        self.sets = [index for index, one in enumerate(body.get("targetList", [])) if self._gives_rows(one)]
        self.grouped = bool(self.groups or scope.aggregates or self.having)
        self.runs = [code.run for _, code in self.targets]

    def _gives_rows(self, target: Node) -> bool:
        call = target["ResTarget"]["val"].get("FuncCall")
        routine = self.scope.catalog.routine(name_of(call)) if call is not None else None
        return routine is not None and routine.many

    def _output(self, node: Node) -> Callable[[Environment], Any]:
        """What ORDER BY or GROUP BY names: a column of the output by its name or number, or else anything."""
        number = node.get("A_Const", {}).get("ival", {}).get("ival") if "A_Const" in node else None
        if number is not None:
            return self.targets[number - 1][1].run
        fields = node.get("ColumnRef", {}).get("fields", []) if "ColumnRef" in node else []
        if len(fields) == 1 and "String" in fields[0]:
            for name, code in self.targets:
                if name == fields[0]["String"]["sval"]:
                    return code.run
        return expression(node, self.scope).run

    def _locks(self) -> list[tuple[Step, int, str]]:
        out: list[tuple[Step, int, str]] = []
        for clause in self.body.get("lockingClause", []):
            body = clause["LockingClause"]
            names = [one["RangeVar"]["relname"] for one in body.get("lockedRels", [])]
            for step in self.source.steps:
                if step.table is not None and (not names or step.relation.name in names):
                    out.append((step, _STRENGTH[body["strength"]], _POLICY.get(body.get("waitPolicy", ""), "wait")))
        return out

    def query(self) -> Query:
        return Query(self.columns, self._run)

    def _run(self, call: Any, outer: Any, most: int) -> list[Any]:
        e = fresh(call, outer, len(self.scope.relations))
        first, last = self.offset(e), self.limit(e)
        plain = not (self.grouped or self.scope.windows or self.distinct or self.sets)
        enough = min(first + last, most) if plain and self.order is None and not self.locks else MANY
        rows: list[Environment] = []
        if enough > 0:
            kept, call.kept = call.kept, {}
            for _ in joined(e, self.source.steps):
                rows.append(e[:])
                if len(rows) >= enough:
                    break
            call.kept = kept
        if self.grouped:
            rows = self._grouped(rows, e)
        if self.scope.windows:
            self._windowed(rows)
        if self.locks:
            return self._locked(call, rows, first, last)
        if self.sets:
            return self._many(rows)[first : first + last]
        if self.order is not None and not self.distinct:
            rows = self.order.sorted(rows, lambda row: row)
        if not self.distinct:
            return [tuple([run(row) for run in self.runs]) for row in rows[first : first + last]]
        return self._distinct(rows)[first : first + last]

    def _distinct(self, rows: list[Environment]) -> list[Any]:
        seen: dict[Any, tuple[Environment, Any]] = {}
        for row in rows:
            values = tuple([run(row) for run in self.runs])
            seen.setdefault(_hashable(values), (row, values))
        found = list(seen.values())
        if self.order is not None:
            found = self.order.sorted(found, lambda pair: pair[0])
        return [values for _, values in found]

    def _grouped(self, rows: list[Environment], empty: Environment) -> list[Environment]:
        groups: dict[Any, list[Environment]] = {}
        for row in rows:
            groups.setdefault(_hashable(tuple(run(row) for run in self.groups)), []).append(row)
        if not groups and not self.groups:
            groups[()] = []
        out = []
        for members in groups.values():
            row = members[0][:] if members else self._nothing(empty)
            row[2] = [one.of(members) for one in self.scope.aggregates or []]
            if self.having is None or self.having(row):
                out.append(row)
        return out

    def _nothing(self, empty: Environment) -> Environment:
        row = empty[:]
        for relation in self.scope.relations:
            row[relation.slot] = (None,) * len(relation.columns)
        return row

    def _windowed(self, rows: list[Environment]) -> None:
        for row in rows:
            row[3] = [None] * len(self.scope.windows or [])
        for index, (name, parts, order) in enumerate(self.scope.windows or []):
            groups: dict[Any, list[Environment]] = {}
            for row in rows:
                groups.setdefault(_hashable(tuple(run(row) for run in parts)), []).append(row)
            for members in groups.values():
                if order is not None:
                    members = order.sorted(members, lambda row: row)
                for number, row in enumerate(members, 1):
                    row[3][index] = number if name == "row_number" else len(members)

    def _many(self, rows: list[Environment]) -> list[Any]:
        """Functions that give many rows, among the targets."""
        calls = {}
        for index in self.sets:
            body = self.body["targetList"][index]["ResTarget"]["val"]["FuncCall"]
            routine = self.scope.catalog.routine(name_of(body))
            calls[index] = (routine, arguments(body, routine, self.scope))
        out = []
        for row in rows:
            given = {index: [one[0] for one in routine.rows(row[0], [run(row) for run in runs])] for index, (routine, runs) in calls.items()}
            for number in range(max(map(len, given.values()))):
                out.append(tuple(given[index][number] if index in given else run(row) for index, run in enumerate(self.runs)))
        return out

    def _locked(self, call: Any, rows: list[Environment], first: int, last: int) -> list[Any]:
        """Locks row after row, in order, and no more than are asked for."""
        if self.order is not None:
            rows = self.order.sorted(rows, lambda row: row)
        out: list[Any] = []
        passed = 0
        for e in rows:
            if len(out) >= last:
                break
            if not self._hold(call, e):
                continue
            if passed < first:
                passed += 1
                continue
            out.append(tuple([run(e) for run in self.runs]))
        return out

    def _hold(self, call: Any, e: Environment) -> bool:
        changed = False
        for step, mode, policy in self.locks:
            version = e[step.slot]
            if not isinstance(version, Version):  # the empty side of an outer join
                continue
            call.session.pause("lock")
            if not lock(call.session, version.row, mode, policy):
                return False
            now = newest(version.row, call.session.transaction)
            if now is None:
                if version.xmax is None or version.xmax is not call.session.transaction:
                    return False
            elif now is not version:
                e[step.slot], changed = now, True
        return not changed or still(e, self.source.steps)


def _hashable(values: tuple[Any, ...]) -> Any:
    return tuple(tuple(value) if isinstance(value, list) else tuple(value.values) if isinstance(value, Composite) else value for value in values)


__all__ = ["Common", "From", "Query", "Step", "common_tables", "fresh", "joined", "operator", "query", "still", "table_name", "targets"]
_ = Ordering
