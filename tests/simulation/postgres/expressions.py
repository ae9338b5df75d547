"""Expressions, compiled once to closures over an environment.

An environment is a list: the call (session, snapshot, arguments, variables), the environment around it, the values of aggregates, those of
window functions, and then the row of each relation.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cmp_to_key
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import define, field

from tests.simulation.postgres import functions
from tests.simulation.postgres.values import (
    INFINITY,
    MINUS_INFINITY,
    Composite,
    Unsupported,
    caster,
    coerce,
    fail,
    of_array,
    text_of,
    type_named,
)

if TYPE_CHECKING:
    from tests.simulation.postgres.catalog import Catalog

Node: TypeAlias = dict[str, Any]
Environment: TypeAlias = list[Any]
Compute: TypeAlias = Callable[[Environment], Any]
FIRST = 4
"""The place of the first relation's row."""


@define(eq=False)
class Code:
    """How to compute something, and of what type it is; None: it is known when it is there."""

    run: Compute
    type: str | None = None
    literal: bool = False
    """A quoted text, or an argument: it becomes what its neighbour is."""


@define(eq=False)
class Relation:
    name: str
    columns: list[tuple[str, str | None]]
    slot: int
    table: str | None = None
    scalar: bool = False


@define(eq=False)
class Scope:
    """What names mean: the relations of a query, those of the queries around it, then variables."""

    catalog: Catalog
    parent: Scope | None = None
    relations: list[Relation] = field(factory=list[Relation])
    variables: dict[str, str | None] = field(factory=dict[str, "str | None"])
    tables: dict[str, Any] = field(factory=dict[str, Any])
    """Common table expressions."""
    aggregates: list[Any] | None = None
    windows: list[Any] | None = None

    def find_table(self, name: str) -> Any:
        at: Scope | None = self
        while at is not None:
            if name in at.tables:
                return at.tables[name]
            at = at.parent
        return None

    def find_variables(self) -> dict[str, str | None]:
        at: Scope = self
        while at.parent is not None:
            at = at.parent
        return at.variables


def expression(node: Node, scope: Scope) -> Code:
    ((kind, body),) = node.items()
    compiler = _KINDS.get(kind)
    if compiler is None:
        raise Unsupported(f"{kind} in an expression")
    return compiler(body, scope)


def _constant(body: Node, scope: Scope) -> Code:
    if body.get("isnull"):
        return Code(lambda e: None, None, True)
    if "sval" in body:
        text = body["sval"].get("sval", "")
        return Code(lambda e: text, "unknown", True)
    if "ival" in body:
        number = body["ival"].get("ival", 0)
        return Code(lambda e: number, "int4")
    if "fval" in body:
        text = body["fval"]["fval"]
        value: Any = Decimal(text) if "." in text or "e" in text.lower() else int(text)
        return Code(lambda e: value, "numeric" if isinstance(value, Decimal) else "int8")
    truth = body["boolval"].get("boolval", False)
    return Code(lambda e: truth, "bool")


def _parameter(body: Node, scope: Scope) -> Code:
    index = body["number"] - 1
    return Code(lambda e: e[0].arguments[index], None, True)


def of_type(code: Code, type: str | None) -> Code:
    """The same as of that type, if it was a literal or is of another."""
    if type is None or type == code.type or type in ("unknown", "record"):
        return code
    cast = caster(type)
    if cast is None:
        return code
    inner = code.run
    return Code(lambda e: cast(inner(e)), type)


def _agree(one: Code, other: Code) -> tuple[Code, Code]:
    """A literal beside something of a type becomes of that type."""
    if one.literal and not other.literal:
        return of_type(one, other.type), other
    if other.literal and not one.literal:
        return one, of_type(other, one.type)
    return one, other


# Names


def _column(body: Node, scope: Scope) -> Code:
    names = [one["String"]["sval"] if "String" in one else "*" for one in body["fields"]]
    found = lookup(names, scope)
    if found is None:
        raise fail("42703", f'column "{".".join(names)}" does not exist')
    return found


def lookup(names: list[str], scope: Scope) -> Code | None:
    depth = 0
    at: Scope | None = scope
    while at is not None:
        for relation in at.relations:
            index = _place(names, relation)
            if index is not None:
                return _reading(relation, index, depth)
        at, depth = at.parent, depth + 1
    variables = scope.find_variables()
    if len(names) == 1 and names[0] in variables:
        name = names[0]
        return Code(lambda e: e[0].variables[name], variables[name])
    if len(names) == 2 and names[0] in variables:
        record, part = names
        return Code(lambda e: _part(e[0].variables[record], part), None)
    return None


def _part(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Composite) else None


def _place(names: list[str], relation: Relation) -> int | None:
    """The column that is meant; -1 for the whole row."""
    if len(names) == 1:
        name = names[0]
        for index, (column, _) in enumerate(relation.columns):
            if column == name:
                return index
        return -1 if name == relation.name else None
    if names[-2] == relation.name:
        if names[-1] == "*":
            return -1
        for index, (column, _) in enumerate(relation.columns):
            if column == names[-1]:
                return index
        if names[-1] == "ctid":
            return -2
    return None


def _reading(relation: Relation, index: int, depth: int) -> Code:
    slot = relation.slot
    if index == -2:
        return Code(_up(lambda e: e[slot].row.number, depth), "tid")
    if index == -1:
        names = [name for name, _ in relation.columns]
        if relation.scalar:
            return Code(_up(lambda e: e[slot][0], depth), relation.columns[0][1])
        return Code(_up(lambda e: Composite(names, list(e[slot])), depth), "record")
    type = relation.columns[index][1]
    if depth == 0:
        return Code(lambda e: e[slot][index], type)
    if depth == 1:
        return Code(lambda e: e[1][slot][index], type)
    return Code(_up(lambda e: e[slot][index], depth), type)


def _up(run: Compute, depth: int) -> Compute:
    if depth == 0:
        return run

    def above(e: Environment) -> Any:
        for _ in range(depth):
            e = e[1]
        return run(e)

    return above


# Operators


def _equal(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return None
    if isinstance(a, tuple) and (None in a or None in b):
        return None
    return a == b


def _compared(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], Any]:
    return lambda a, b: None if a is None or b is None else test(a, b)


def _add(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return None
    if isinstance(a, datetime) or isinstance(b, datetime):
        moment, span = (a, b) if isinstance(a, datetime) else (b, a)
        return moment if moment in (INFINITY, MINUS_INFINITY) else moment + span
    return a + b


def _subtract(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return None
    if isinstance(a, datetime) and a in (INFINITY, MINUS_INFINITY) and isinstance(b, timedelta):
        return a
    return a - b


def _divide(a: Any, b: Any) -> Any:
    if a is None or b is None:
        return None
    if b == 0:
        raise fail("22012", "division by zero")
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    if isinstance(a, float) or isinstance(b, float):
        return float(a) / float(b)
    return a / b


def _joined(array: bool) -> Callable[[Any, Any], Any]:
    """`||`; `array`: whether it is about arrays, as far as is known before."""

    def join(a: Any, b: Any) -> Any:
        if isinstance(a, list) or isinstance(b, list) or array:
            if a is None or b is None:
                return a if b is None else b
            return (a if isinstance(a, list) else [a]) + (b if isinstance(b, list) else [b])
        if a is None or b is None:
            return None
        if isinstance(a, bytes):
            return a + b
        return text_of(a) + text_of(b)

    return join


_OPERATORS: dict[str, tuple[Callable[[Any, Any], Any], str | None]] = {
    "=": (_equal, "bool"),
    "<>": (lambda a, b: None if (found := _equal(a, b)) is None else not found, "bool"),
    "<": (_compared(lambda a, b: a < b), "bool"),
    ">": (_compared(lambda a, b: a > b), "bool"),
    "<=": (_compared(lambda a, b: a <= b), "bool"),
    ">=": (_compared(lambda a, b: a >= b), "bool"),
    "+": (_add, None),
    "-": (_subtract, None),
    "*": (_compared(lambda a, b: a * b), None),  # type: ignore[arg-type, return-value]
    "/": (_divide, None),
    "%": (_compared(lambda a, b: a % b), None),  # type: ignore[arg-type, return-value]
    "~": (_compared(lambda a, b: re.search(b, a) is not None), "bool"),
    "~*": (_compared(lambda a, b: re.search(b, a, re.IGNORECASE) is not None), "bool"),
    "<@": (_compared(lambda a, b: all(one in b for one in a)), "bool"),
    "@>": (_compared(lambda a, b: all(one in a for one in b) if isinstance(b, list) else any(s[0] <= b < s[1] for s in a)), "bool"),
}


def operator(name: str, one: Code, other: Code) -> Code:
    if name == "||":
        return _concatenation(one, other)
    if name in ("+", "-") and (one.type == "timestamptz" or other.type == "timestamptz"):
        if other.literal:
            other = of_type(other, "interval")
    else:
        one, other = _agree(one, other)
    if name not in _OPERATORS:
        raise Unsupported(f"the operator {name}")
    run, type = _OPERATORS[name]
    left, right = one.run, other.run
    if name == "=":

        def equal(e: Environment) -> Any:
            a, b = left(e), right(e)
            if a is None or b is None:
                return None
            return _equal(a, b) if isinstance(a, tuple) else a == b

        return Code(equal, "bool")
    return Code(lambda e: run(left(e), right(e)), type or _arithmetic(name, one.type, other.type))


def _concatenation(one: Code, other: Code) -> Code:
    if one.literal and (of_array(other.type) or one.type is None):
        one = of_type(one, other.type)
    elif other.literal and of_array(one.type):
        other = of_type(other, one.type)
    left, right = one.run, other.run
    array = next((code.type for code in (one, other) if of_array(code.type)), None)
    join = _joined(array is not None)
    type = array or (
        "bytea" if "bytea" in (one.type, other.type) else "text" if one.type not in (None, "record") and other.type is not None else None
    )
    return Code(lambda e: join(left(e), right(e)), type)


def _arithmetic(name: str, one: str | None, other: str | None) -> str | None:
    pair = {one, other}
    if "timestamptz" in pair:
        return "interval" if one == other else "timestamptz"
    for type in ("float8", "numeric", "pg_lsn", "interval", "int8", "int4", "int2"):
        if type in pair:
            return "numeric" if type == "pg_lsn" else type
    return None


def _applied(body: Node, scope: Scope) -> Code:
    kind, name = body["kind"], body["name"][-1]["String"]["sval"]
    if kind == "AEXPR_OP" and "lexpr" not in body:
        inner = expression(body["rexpr"], scope)
        return Code(lambda e: None if (value := inner.run(e)) is None else -value, inner.type)
    one = expression(body["lexpr"], scope)
    if kind == "AEXPR_IN":
        return _among(one, [expression(item, scope) for item in body["rexpr"]["List"]["items"]], name == "<>")
    if kind in ("AEXPR_BETWEEN", "AEXPR_NOT_BETWEEN"):
        low, high = (expression(item, scope) for item in body["rexpr"]["List"]["items"])
        both = _both([operator(">=", one, low).run, operator("<=", one, high).run])
        return Code(both if kind == "AEXPR_BETWEEN" else lambda e: None if (found := both(e)) is None else not found, "bool")
    other = expression(body["rexpr"], scope)
    match kind:
        case "AEXPR_OP":
            return operator(name, one, other)
        case "AEXPR_OP_ANY" | "AEXPR_OP_ALL":
            return _quantified(name, one, other, kind == "AEXPR_OP_ALL")
        case "AEXPR_DISTINCT" | "AEXPR_NOT_DISTINCT":
            one, other = _agree(one, other)
            left, right, same = one.run, other.run, kind == "AEXPR_NOT_DISTINCT"
            return Code(lambda e: (left(e) == right(e)) is same, "bool")
        case "AEXPR_LIKE":
            negated, left, right = name == "!~~", one.run, other.run
            return Code(lambda e: None if (a := left(e)) is None or (b := right(e)) is None else _like(a, b) is not negated, "bool")
        case "AEXPR_NULLIF":
            one, other = _agree(one, other)
            return Code(lambda e: None if _equal(value := one.run(e), other.run(e)) else value, one.type)
        case _:
            raise Unsupported(kind)


def _like(text: str, pattern: str) -> bool:
    parts = re.findall(r"\\(.)|(%)|(_)|(.)", pattern, re.DOTALL)
    return (
        re.fullmatch("".join(".*" if many else "." if one else re.escape(quoted or plain) for quoted, many, one, plain in parts), text, re.DOTALL)
        is not None
    )


def _among(one: Code, items: list[Code], negated: bool) -> Code:
    if one.literal:
        one = of_type(one, next((item.type for item in items if not item.literal), None))
    left, rights = one.run, [of_type(item, one.type).run if item.literal else item.run for item in items]

    def run(e: Environment) -> Any:
        value = left(e)
        if value is None:
            return None
        unknown = False
        for right in rights:
            other = right(e)
            if other is None:
                unknown = True
            elif value == other:
                return not negated
        return None if unknown else negated

    return Code(run, "bool")


def _quantified(name: str, one: Code, other: Code, every: bool) -> Code:
    if other.literal and one.type not in (None, "unknown"):
        other = of_type(other, f"{one.type}[]")
    elif one.literal and of_array(other.type):
        one = of_type(one, of_array(other.type))
    left, right, test = one.run, other.run, _OPERATORS[name][0]
    if name == "=" and not every:

        def member(e: Environment) -> Any:
            value, among = left(e), right(e)
            if among is None:
                return None
            if value is not None and value in among:
                return True
            return None if (value is None and among) or None in among else False

        return Code(member, "bool")

    def run(e: Environment) -> Any:
        value, among = left(e), right(e)
        if among is None:
            return None
        found = [test(value, each) for each in among]
        if every:
            return False if False in found else None if None in found else True
        return True if True in found else None if None in found else False

    return Code(run, "bool")


def _both(runs: list[Compute]) -> Compute:
    def run(e: Environment) -> Any:
        unknown = False
        for one in runs:
            found = one(e)
            if found is None:
                unknown = True
            elif not found:
                return False
        return None if unknown else True

    return run


def _logic(body: Node, scope: Scope) -> Code:
    runs = [of_type(expression(one, scope), "bool").run for one in body["args"]]
    match body["boolop"]:
        case "AND_EXPR":
            return Code(_both(runs), "bool")
        case "NOT_EXPR":
            only = runs[0]
            return Code(lambda e: None if (found := only(e)) is None else not found, "bool")

    def either(e: Environment) -> Any:
        unknown = False
        for one in runs:
            found = one(e)
            if found is None:
                unknown = True
            elif found:
                return True
        return None if unknown else False

    return Code(either, "bool")


def _null_test(body: Node, scope: Scope) -> Code:
    inner, wanted = expression(body["arg"], scope).run, body["nulltesttype"] == "IS_NULL"
    return Code(lambda e: (inner(e) is None) is wanted, "bool")


def _boolean_test(body: Node, scope: Scope) -> Code:
    inner, kind = expression(body["arg"], scope).run, body["booltesttype"]
    wanted = {"TRUE": True, "FALSE": False, "UNKNOWN": None}[kind.rpartition("_")[2]]
    return Code(lambda e: (inner(e) is wanted) is ("NOT" not in kind), "bool")


# Choices


def alike(codes: list[Code]) -> tuple[list[Code], str | None]:
    """Alternatives, all of the type of the first that has one."""
    type = next((code.type for code in codes if not code.literal and code.type is not None), None)
    numbers = [code.type for code in codes if code.type in ("int2", "int4", "int8", "numeric", "float8")]
    if len(numbers) > 1 and type in numbers:
        type = max((one for one in numbers if one), key=["int2", "int4", "int8", "numeric", "float8"].index)
    if type is None and any(code.type == "unknown" for code in codes):
        type = "text" if all(code.literal for code in codes) else None
    return [of_type(code, type) for code in codes], type


def _case(body: Node, scope: Scope) -> Code:
    subject = expression(body["arg"], scope) if "arg" in body else None
    tests = []
    for when in body["args"]:
        test = expression(when["CaseWhen"]["expr"], scope)
        tests.append((test if subject is None else operator("=", subject, test)).run)
    results = [expression(when["CaseWhen"]["result"], scope) for when in body["args"]]
    default = expression(body["defresult"], scope) if "defresult" in body else Code(lambda e: None, None, True)
    codes, type = alike([*results, default])
    pairs, last = list(zip(tests, (code.run for code in codes), strict=False)), codes[-1].run

    def run(e: Environment) -> Any:
        for test, result in pairs:
            if test(e):
                return result(e)
        return last(e)

    return Code(run, type)


def _coalesce(body: Node, scope: Scope) -> Code:
    codes, type = alike([expression(one, scope) for one in body["args"]])
    runs = [code.run for code in codes]

    def run(e: Environment) -> Any:
        for one in runs:
            value = one(e)
            if value is not None:
                return value
        return None

    return Code(run, type)


def _extreme(body: Node, scope: Scope) -> Code:
    codes, type = alike([expression(one, scope) for one in body["args"]])
    runs, choose = [code.run for code in codes], max if body["op"] == "IS_GREATEST" else min

    def run(e: Environment) -> Any:
        values = [value for one in runs if (value := one(e)) is not None]
        return choose(values) if values else None

    return Code(run, type)


# Arrays, rows, casts


def _array(body: Node, scope: Scope) -> Code:
    codes, type = alike([expression(one, scope) for one in body.get("elements", [])])
    runs = [code.run for code in codes]
    return Code(lambda e: [run(e) for run in runs], None if type is None else f"{type}[]", type is None)


def _row(body: Node, scope: Scope) -> Code:
    runs = [expression(one, scope).run for one in body["args"]]
    return Code(lambda e: tuple(run(e) for run in runs), "record")


def _cast(body: Node, scope: Scope) -> Code:
    inner, type = expression(body["arg"], scope), type_named(body["typeName"])
    if type == "regclass":
        return Code(inner.run, type)
    return Code(of_type(Code(inner.run), type).run, type)


def _subscript(body: Node, scope: Scope) -> Code:
    inner = expression(body["arg"], scope)
    for step in body["indirection"]:
        inner = _step(inner, step, scope)
    return inner


def _open(_: Environment) -> None:
    """The bound that a slice leaves out."""


def _step(inner: Code, step: Node, scope: Scope) -> Code:
    run = inner.run
    if "String" in step:
        name = step["String"]["sval"]
        return Code(lambda e: _part(run(e), name))
    indices = step["A_Indices"]
    if indices.get("is_slice"):
        low, high = (expression(indices[side], scope).run if side in indices else _open for side in ("lidx", "uidx"))
        return Code(lambda e: None if (value := run(e)) is None else value[(low(e) or 1) - 1 : high(e)], inner.type)
    upper = expression(indices["uidx"], scope).run

    def item(e: Environment) -> Any:
        value, index = run(e), upper(e)
        return value[index - 1] if value is not None and index is not None and 1 <= index <= len(value) else None

    return Code(item, of_array(inner.type))


# Queries inside


def _sublink(body: Node, scope: Scope) -> Code:
    from tests.simulation.postgres.queries import query

    inner = query(body["subselect"], scope)
    kind = body["subLinkType"]
    type = inner.columns[0][1] if inner.columns else None
    match kind:
        case "EXISTS_SUBLINK":
            return Code(lambda e: bool(inner.run(e[0], e, 1)), "bool")
        case "EXPR_SUBLINK":
            return Code(lambda e: _only(inner.run(e[0], e)), type)
        case "ARRAY_SUBLINK":
            return Code(lambda e: [row[0] for row in inner.run(e[0], e)], None if type is None else f"{type}[]")
        case "ANY_SUBLINK":
            test, wide = expression(body["testexpr"], scope).run, len(inner.columns) > 1

            def member(e: Environment) -> Any:
                value = test(e)
                found = [tuple(row) if wide else row[0] for row in inner.run(e[0], e)]
                if value is None:
                    return None if found else False
                return True if value in found else None if None in found else False

            return Code(member, "bool")
        case _:
            raise Unsupported(kind)


def _only(rows: list[Any]) -> Any:
    if len(rows) > 1:
        raise fail("21000", "more than one row returned by a subquery used as an expression")
    return rows[0][0] if rows else None


# Functions


def name_of(body: Node) -> str:
    parts = [one["String"]["sval"] for one in body["funcname"]]
    return parts[-1] if parts[0] == "pg_catalog" else ".".join(parts)


def _call(body: Node, scope: Scope) -> Code:
    name = name_of(body)
    if "over" in body:
        return _window(name, body, scope)
    if name in functions.AGGREGATES:
        return _aggregate(name, body, scope)
    routine = scope.catalog.routine(name)
    if routine is not None:
        runs = arguments(body, routine, scope)
        return Code(lambda e: routine.value(e[0], [run(e) for run in runs]), None if routine.returns == "record" else routine.returns)
    names = [one["NamedArgExpr"]["name"] for one in body.get("args", []) if "NamedArgExpr" in one]
    codes = [expression(one["NamedArgExpr"]["arg"] if "NamedArgExpr" in one else one, scope) for one in body.get("args", [])]
    return functions.call(name, codes, names)


def arguments(body: Node, routine: Any, scope: Scope) -> list[Compute]:
    """The arguments of a call of one of our functions, each as of its declared type, defaults included."""
    given = [expression(one, scope) for one in body.get("args", [])]
    if len(given) > len(routine.parameters):
        raise fail("42883", f"function {routine.name} does not exist with {len(given)} arguments")
    runs = []
    for index, (parameter, type, default) in enumerate(routine.parameters):
        if index < len(given):
            code = given[index]
        elif default is not None:
            code = expression(default, Scope(scope.catalog))
        else:
            raise fail("42883", f"function {routine.name} lacks its argument {parameter}")
        runs.append(of_type(code, type).run)
    return runs


@define(eq=False)
class Ordering:
    """ORDER BY: how to compute each key, whether it falls, whether nulls come first."""

    keys: list[tuple[Compute, bool, bool]]

    def sorted(self, rows: list[Any], of: Callable[[Any], Environment]) -> list[Any]:
        decorated = [([run(of(row)) for run, _, _ in self.keys], row) for row in rows]
        return [row for _, row in sorted(decorated, key=cmp_to_key(self._compare))]

    def _compare(self, one: tuple[list[Any], Any], other: tuple[list[Any], Any]) -> int:
        for (_, falling, nulls_first), a, b in zip(self.keys, one[0], other[0], strict=True):
            if a is None or b is None:
                if a is None and b is None:
                    continue
                return -1 if (a is None) is nulls_first else 1
            if a != b:
                return -1 if (a < b) is not falling else 1
        return 0


def ordering(items: list[Node], scope: Scope, compute: Callable[[Node], Compute] | None = None) -> Ordering:
    keys = []
    for item in items:
        body = item["SortBy"]
        run = compute(body["node"]) if compute is not None else expression(body["node"], scope).run
        falling = body.get("sortby_dir") == "SORTBY_DESC"
        nulls = body.get("sortby_nulls")
        keys.append((run, falling, falling if nulls in (None, "SORTBY_NULLS_DEFAULT") else nulls == "SORTBY_NULLS_FIRST"))
    return Ordering(keys)


@define(eq=False)
class Aggregate:
    name: str
    arguments: list[Compute]
    condition: Compute | None
    order: Ordering | None
    distinct: bool

    def of(self, environments: list[Environment]) -> Any:
        rows = environments
        if self.condition is not None:
            rows = [e for e in rows if self.condition(e)]
        if self.order is not None:
            rows = self.order.sorted(rows, lambda e: e)
        if not self.arguments:
            return len(rows)
        values = [self.arguments[0](e) for e in rows]
        if self.distinct:
            values = sorted(dict.fromkeys(value for value in values if value is not None)) + ([None] if None in values else [])
        return functions.AGGREGATES[self.name](values, *(run(environments[0]) for run in self.arguments[1:] if environments))


def _aggregate(name: str, body: Node, scope: Scope) -> Code:
    if scope.aggregates is None:
        raise Unsupported(f"{name} in that place")
    codes = [expression(one, scope) for one in body.get("args", [])]
    condition = expression(body["agg_filter"], scope).run if "agg_filter" in body else None
    order = ordering(body["agg_order"], scope) if "agg_order" in body else None
    index = len(scope.aggregates)
    scope.aggregates.append(Aggregate(name, [code.run for code in codes], condition, order, bool(body.get("agg_distinct"))))
    return Code(lambda e: e[2][index], functions.aggregate_type(name, codes[0].type if codes else None))


def _window(name: str, body: Node, scope: Scope) -> Code:
    if scope.windows is None or name not in ("row_number", "count"):
        raise Unsupported(f"{name} over, in that place")
    over = body["over"]
    parts = [expression(one, scope).run for one in over.get("partitionClause", [])]
    order = ordering(over["orderClause"], scope) if "orderClause" in over else None
    index = len(scope.windows)
    scope.windows.append((name, parts, order))
    return Code(lambda e: e[3][index], "int8")


def _special(body: Node, scope: Scope) -> Code:
    match body["op"]:
        case "SVFOP_CURRENT_TIMESTAMP":
            return functions.call("now", [], [])
        case other:
            raise Unsupported(other)


_KINDS: dict[str, Callable[[Node, Scope], Code]] = {
    "A_Const": _constant, "ParamRef": _parameter, "ColumnRef": _column, "A_Expr": _applied, "BoolExpr": _logic, "NullTest": _null_test,
    "BooleanTest": _boolean_test, "CaseExpr": _case, "CoalesceExpr": _coalesce, "MinMaxExpr": _extreme, "A_ArrayExpr": _array, "RowExpr": _row,
    "TypeCast": _cast, "A_Indirection": _subscript, "SubLink": _sublink, "FuncCall": _call, "SQLValueFunction": _special,
}  # fmt: skip

__all__ = ["FIRST", "Aggregate", "Code", "Environment", "Node", "Ordering", "Relation", "Scope", "alike", "coerce", "expression", "ordering"]
