"""Our functions: SQL and PL/pgSQL, run as a server runs them: each statement of a volatile one has a snapshot of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pglast
from attrs import define, field
from pglast.parser import parse_sql_json

from tests.simulation.postgres.expressions import Node, Scope, expression
from tests.simulation.postgres.queries import Columns, Query, query
from tests.simulation.postgres.values import Composite, Unsupported, coerce, fail, type_named

EXIT, CONTINUE, RETURN = "exit", "continue", "return"
_STATES = {"unique_violation": "23505", "deadlock_detected": "40P01", "lock_not_available": "55P03", "restrict_violation": "23001"}
_TYPES = {
    "integer": "int4",
    "bigint": "int8",
    "smallint": "int2",
    "boolean": "bool",
    "timestamp with time zone": "timestamptz",
    "double precision": "float8",
}


@define(eq=False)
class Call:
    """One statement on its way: who runs it, what it sees, its arguments or variables."""

    session: Any
    snapshot: Any
    arguments: Any
    variables: dict[str, Any]
    common: dict[Any, list[Any]] = field(factory=dict)
    kept: dict[Any, Any] = field(factory=dict)
    count: int | None = None


@define(eq=False)
class Frame:
    """One call of a PL/pgSQL function."""

    session: Any
    variables: dict[str, Any]
    snapshot: Any
    """The caller's, for a function that is stable."""
    rows: list[Any] = field(factory=list)
    result: Any = None
    count: int = 0

    def call(self, *, pause: bool = True) -> Call:
        snapshot = self.snapshot if self.snapshot is not None else self.session.take_snapshot(pause=pause)
        return Call(self.session, snapshot, (), self.variables)


Step = Callable[[Frame], "str | None"]


class Routine:
    """A function as it was created; compiled when it is first called."""

    def __init__(self, node: Node, text: str, catalog: Any) -> None:
        body = node["CreateFunctionStmt"]
        options = {one["DefElem"]["defname"]: one["DefElem"].get("arg") for one in body["options"]}
        self.text, self.catalog = text, catalog
        self.name = ".".join(one["String"]["sval"] for one in body["funcname"])
        self.language = options["language"]["String"]["sval"]
        self.source = options["as"]["List"]["items"][0]["String"]["sval"]
        self.fresh = options.get("volatility", {}).get("String", {}).get("sval", "volatile") == "volatile"
        self.parameters: list[tuple[str, str, Node | None]] = []
        self.columns: Columns | None = None
        table = []
        for one in body.get("parameters", []):
            parameter = one["FunctionParameter"]
            name, type = parameter.get("name", ""), type_named(parameter["argType"])
            if parameter.get("mode") == "FUNC_PARAM_TABLE":
                table.append((name, type))
            else:
                self.parameters.append((name, type, parameter.get("defexpr")))
        returns = body["returnType"]
        self.many = bool(returns.get("setof")) or bool(table)
        self.returns = type_named(returns)
        self.signature = f"{self.name}({len(self.parameters)})"
        named = ".".join(one["String"]["sval"] for one in returns["names"])
        if table:
            self.columns, self.returns = table, "record"
        elif named in catalog.tables:
            self.columns, self.returns = [(column.name, column.type) for column in catalog.tables[named].columns], "record"
        self._sql: list[Query] | None = None
        self._steps: Step | None = None
        self._first: list[tuple[str, str | None, Any]] = []

    def again(self, catalog: Any) -> Routine:
        """The same, to be compiled anew."""
        made = Routine.__new__(Routine)
        made.__dict__.update(self.__dict__)
        made.catalog, made._sql, made._steps, made._first = catalog, None, None, []
        return made

    # Calling

    def value(self, call: Any, arguments: list[Any]) -> Any:
        if self.language == "sql":
            rows = self._run_sql(call, arguments)
            return rows[0][0] if rows and self.returns != "void" else None
        frame = self._run(call, arguments)
        if self.many:
            return frame.rows[0][0] if frame.rows else None
        return frame.result

    def rows(self, call: Any, arguments: list[Any]) -> list[Any]:
        if self.language == "sql":
            rows = self._run_sql(call, arguments)
            return rows if self.many else rows[:1] or [(None,)]
        frame = self._run(call, arguments)
        return frame.rows if self.many else [(frame.result,)]

    def trigger(self, session: Any, old: Composite, new: Composite) -> None:
        self._compiled()
        frame = Frame(session, {"new": new, "old": old, "found": False}, None)
        self._begin(frame)
        assert self._steps is not None
        self._steps(frame)

    def _run_sql(self, call: Any, arguments: list[Any]) -> list[Any]:
        if self._sql is None:
            root = Scope(self.catalog, variables={name: type for name, type, _ in self.parameters})
            self._sql = [query(one["stmt"], root) for one in json.loads(parse_sql_json(self.source))["stmts"]]
        variables = dict(zip((name for name, _, _ in self.parameters), arguments, strict=True))
        rows: list[Any] = []
        for one in self._sql:
            snapshot = call.session.take_snapshot() if self.fresh else call.snapshot
            rows = one.run(Call(call.session, snapshot, (), variables), None)
        if self.columns is None and rows and self.returns not in ("void", "record"):
            return [(coerce(row[0], self.returns),) for row in rows]
        return rows

    def _run(self, call: Any, arguments: list[Any]) -> Frame:
        self._compiled()
        variables: dict[str, Any] = dict(zip((name for name, _, _ in self.parameters), arguments, strict=True))
        variables["found"] = False
        for name, _ in self.columns or ():
            variables[name] = None
        frame = Frame(call.session, variables, None if self.fresh else call.snapshot)
        self._begin(frame)
        assert self._steps is not None
        self._steps(frame)
        return frame

    def _begin(self, frame: Frame) -> None:
        for name, type, default in self._first:
            frame.variables[name] = Composite([], []) if type == "record" else None if default is None else default(frame)

    # Compiling

    def _compiled(self) -> None:
        if self._steps is not None:
            return
        head, begin, rest = self.text.partition("\nbegin")  # the parser knows no types of a schema; rows of a table are records to us
        head = re.sub(r"\breturns setof \w+\.\w+", "returns setof record", re.sub(r"(?m)^(\s*\w+) \w+\.\w+;", r"\1 record;", head))
        rest = re.sub(r"\breturn (next )?(?!next;)(\w+);", r"return \1(\2);", rest)  # of a bare variable the parser does not tell the name
        (parsed,) = pglast.parse_plpgsql(head + begin + rest)
        function = parsed["PLpgSQL_function"]
        given = {name for name, _, _ in self.parameters}
        variables: dict[str, str | None] = {"found": "bool", "new": "record", "old": "record"}
        datums: list[tuple[str, str | None]] = []
        defaults: list[tuple[str, str | None, Any]] = []
        for datum in function["datums"]:
            ((kind, body),) = datum.items()
            name = body.get("refname", "")
            type = _declared(body["datatype"]["PLpgSQL_type"]["typname"]) if kind == "PLpgSQL_var" else "record" if kind == "PLpgSQL_rec" else None
            datums.append((name, type))
            if kind in ("PLpgSQL_var", "PLpgSQL_rec") and name not in ("found", "new", "old"):
                if name not in variables or name not in given:
                    variables[name] = type
                if name not in given and not any(name == column for column, _ in self.columns or ()):
                    defaults.append((name, type, body.get("default_val")))
        variables |= {name: declared for name, declared, _ in self.parameters} | dict(self.columns or ())
        maker = Maker(self, Scope(self.catalog, variables=variables), variables, datums)
        self._first = [(name, type, maker.value(default, type) if default is not None else None) for name, type, default in defaults]
        self._steps = maker.block(function["action"]["PLpgSQL_stmt_block"])


def _declared(name: str) -> str:
    plain = name.strip().removeprefix("pg_catalog.")
    if plain.endswith("[]"):
        return _declared(plain[:-2]) + "[]"
    if plain.startswith("_"):
        return _declared(plain[1:]) + "[]"
    plain = plain.strip('"')
    return _TYPES.get(plain, plain)


class Maker:
    """Makes steps of the statements of one function."""

    def __init__(self, routine: Routine, scope: Scope, variables: dict[str, str | None], datums: list[tuple[str, str | None]]) -> None:
        self.routine, self.scope, self.variables, self.datums = routine, scope, variables, datums

    # Expressions

    def value(self, node: Node, type: str | None = None) -> Callable[[Frame], Any]:
        return self.text(node["PLpgSQL_expr"]["query"], type)

    def text(self, text: str, type: str | None = None) -> Callable[[Frame], Any]:
        statement = json.loads(parse_sql_json("select " + text))["stmts"][0]["stmt"]
        select = statement["SelectStmt"]
        if set(select) <= {"targetList", "limitOption", "op"}:
            code = expression(select["targetList"][0]["ResTarget"]["val"], self.scope)
            run, looks = code.run, "SubLink" in json.dumps(statement) or "FuncCall" in json.dumps(statement)
            as_it_is = type is None or type == "record" or type == code.type
            return lambda frame: _as(
                run([frame.call(pause=looks) if looks else Call(frame.session, None, (), frame.variables), None, None, None]),
                None if as_it_is else type,
            )
        made = query(statement, self.scope)
        return lambda frame: _as((made.run(frame.call(), None) or [(None,)])[0][0], type)

    def query(self, node: Node) -> Query:
        statement = json.loads(parse_sql_json(node["PLpgSQL_expr"]["query"]))["stmts"][0]["stmt"]
        return query(statement, self.scope)

    # Statements

    def all(self, nodes: list[Node] | None) -> Step:
        steps = [self.one(node) for node in nodes or []]

        def run(frame: Frame) -> str | None:
            for step in steps:
                found = step(frame)
                if found is not None:
                    return found
            return None

        return run

    def one(self, node: Node) -> Step:
        ((kind, body),) = node.items()
        maker = getattr(self, kind.removeprefix("PLpgSQL_stmt_"), None)
        if maker is None:
            raise Unsupported(f"{kind} in {self.routine.name}")
        return maker(body)  # type: ignore[no-any-return]

    def block(self, body: Node) -> Step:
        steps = self.all(body.get("body"))
        if "exceptions" not in body:
            return steps
        caught: list[tuple[set[str], Step]] = []
        for one in body["exceptions"]["PLpgSQL_exception_block"]["exc_list"]:
            exception = one["PLpgSQL_exception"]
            names = {condition["PLpgSQL_condition"]["condname"] for condition in exception["conditions"]}
            caught.append(({_STATES[name] for name in names}, self.all(exception.get("action"))))

        def run(frame: Frame) -> str | None:
            import asyncpg

            mark = frame.session.savepoint("")
            try:
                return steps(frame)
            except asyncpg.PostgresError as error:
                for states, handler in caught:
                    if error.sqlstate in states:
                        frame.session.back_to(mark)
                        return handler(frame)
                raise

        return run

    stmt_block = block

    def __getattr__(self, name: str) -> Any:
        if name == "if":
            return self.when
        if name == "return":
            return self.give_back
        raise AttributeError(name)

    def when(self, body: Node) -> Step:
        branches = [(self.value(body["cond"], "bool"), self.all(body.get("then_body")))]
        for one in body.get("elsif_list", []):
            branches.append((self.value(one["PLpgSQL_if_elsif"]["cond"], "bool"), self.all(one["PLpgSQL_if_elsif"].get("stmts"))))
        otherwise = self.all(body.get("else_body"))

        def run(frame: Frame) -> str | None:
            for test, steps in branches:
                if test(frame):
                    return steps(frame)
            return otherwise(frame)

        return run

    def loop(self, body: Node) -> Step:
        steps = self.all(body.get("body"))

        def run(frame: Frame) -> str | None:
            while True:
                found = steps(frame)
                if found == EXIT:
                    return None
                if found == RETURN:
                    return found

        return run

    def _each(self, steps: Step, frame: Frame, put: Callable[[Any], None], values: Any) -> str | None:
        for value in values:
            put(value)
            found = steps(frame)
            if found == EXIT:
                return None
            if found == RETURN:
                return found
        return None

    def fors(self, body: Node) -> Step:
        made, steps, put = self.query(body["query"]), self.all(body.get("body")), self._target(body["var"])

        def run(frame: Frame) -> str | None:
            rows = made.run(frame.call(), None)
            found = self._each(steps, frame, lambda row: put(frame, made, row), rows)
            frame.variables["found"] = bool(rows)
            return found

        return run

    def fori(self, body: Node) -> Step:
        low, high, steps = self.value(body["lower"], "int4"), self.value(body["upper"], "int4"), self.all(body.get("body"))
        name = body["var"]["PLpgSQL_var"]["refname"]
        return lambda frame: self._each(steps, frame, lambda value: frame.variables.__setitem__(name, value), range(low(frame), high(frame) + 1))

    def foreach_a(self, body: Node) -> Step:
        values, steps, name = self.value(body["expr"]), self.all(body.get("body")), self.datums[body["varno"]][0]
        return lambda frame: self._each(steps, frame, lambda value: frame.variables.__setitem__(name, value), values(frame) or [])

    def exit(self, body: Node) -> Step:
        signal = EXIT if body.get("is_exit") else CONTINUE
        if "cond" not in body:
            return lambda frame: signal
        test = self.value(body["cond"], "bool")
        return lambda frame: signal if test(frame) else None

    def give_back(self, body: Node) -> Step:
        if "expr" not in body:
            return lambda frame: RETURN
        value = self.value(body["expr"], None if self.routine.returns in ("record", "void", "trigger") else self.routine.returns)

        def run(frame: Frame) -> str | None:
            frame.result = value(frame)
            return RETURN

        return run

    def return_next(self, body: Node) -> Step:
        if "expr" in body:
            value = self.value(body["expr"], self.routine.returns)
            return lambda frame: frame.rows.append((value(frame),))
        columns = self.routine.columns or []
        return lambda frame: frame.rows.append(tuple(_as(frame.variables[name], type) for name, type in columns))

    def return_query(self, body: Node) -> Step:
        made = self.query(body["query"])

        def run(frame: Frame) -> str | None:
            found = made.run(frame.call(), None)
            frame.rows += found
            frame.variables["found"] = bool(found)
            return None

        return run

    def perform(self, body: Node) -> Step:
        made = self.query(body["expr"])

        def run(frame: Frame) -> str | None:
            frame.variables["found"] = bool(made.run(frame.call(), None))
            return None

        return run

    def execsql(self, body: Node) -> Step:
        text = body["sqlstmt"]["PLpgSQL_expr"]["query"]
        if "DropStmt" in json.loads(parse_sql_json(text))["stmts"][0]["stmt"]:
            return lambda frame: frame.session.run_text(text)
        made = self.query(body["sqlstmt"])
        put = self._target(body["target"]) if body.get("into") else None

        def run(frame: Frame) -> str | None:
            call = frame.call()
            rows = made.run(call, None)
            frame.count = call.count if call.count is not None else len(rows)
            frame.variables["found"] = bool(rows) if put is not None else frame.count > 0
            if put is not None:
                put(frame, made, rows[0] if rows else None)
            return None

        return run

    def dynexecute(self, body: Node) -> Step:
        text = self.value(body["query"], "text")

        def run(frame: Frame) -> str | None:
            frame.session.run_text(text(frame))
            return None

        return run

    def getdiag(self, body: Node) -> Step:
        names = [self.datums[one["PLpgSQL_diag_item"]["target"]][0] for one in body["diag_items"]]

        def run(frame: Frame) -> str | None:
            for name in names:
                frame.variables[name] = frame.count
            return None

        return run

    def assign(self, body: Node) -> Step:
        left, _, right = body["expr"]["PLpgSQL_expr"]["query"].partition(":=")
        left = left.strip()
        item = re.fullmatch(r"(\w+)\[(.+)\]", left)
        if item is not None:
            return self._put_item(item[1], self.text(item[2], "int4"), self.text(right))
        if "." in left:
            record, _, name = left.partition(".")
            value = self.text(right)

            def put(frame: Frame) -> None:
                made = frame.variables[record] = frame.variables[record].copy()
                made.put(name, value(frame))

            return put
        value = self.text(right, self.variables[left])
        return lambda frame: frame.variables.__setitem__(left, value(frame))

    def _put_item(self, name: str, index: Callable[[Frame], Any], value: Callable[[Frame], Any]) -> Step:
        type = self.variables[name]
        inner = type[:-2] if type is not None and type.endswith("[]") else None

        def put(frame: Frame) -> None:
            at, found = index(frame), _as(value(frame), inner)
            array = list(frame.variables[name] or [])
            array += [None] * (at - len(array))
            array[at - 1] = found
            frame.variables[name] = array

        return put

    def stmt_raise(self, body: Node) -> Step:
        options = {one["PLpgSQL_raise_option"]["opt_type"]: self.value(one["PLpgSQL_raise_option"]["expr"]) for one in body.get("options", [])}
        parameters = [self.value(one) for one in body.get("params", [])]

        def run(frame: Frame) -> str | None:
            if body.get("elog_level", 0) < 21:
                return None
            text = body.get("message", "")
            for one in parameters:
                text = text.replace("%", str(one(frame)), 1)
            state = options[0](frame) if 0 in options else "P0001"
            raise fail(_STATES.get(state, state), text)

        return run

    def _target(self, node: Node) -> Callable[[Frame, Query, Any], None]:
        ((kind, body),) = node.items()
        if kind == "PLpgSQL_rec":
            name = body["refname"]

            def whole(frame: Frame, made: Query, row: Any) -> None:
                names = [column for column, _ in made.columns]
                frame.variables[name] = Composite(names, list(row) if row is not None else [None] * len(names))

            return whole
        names = [one["name"] for one in body["fields"]] if kind == "PLpgSQL_row" else [body["refname"]]
        types = [self.variables[name] for name in names]

        def parts(frame: Frame, made: Query, row: Any) -> None:
            for index, name in enumerate(names):
                frame.variables[name] = None if row is None else _as(row[index], types[index])

        return parts


setattr(Maker, "raise", Maker.stmt_raise)


def _as(value: Any, type: str | None) -> Any:
    return value if type is None or type == "record" else coerce(value, type)
