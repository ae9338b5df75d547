"""A request's query string, understood or refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Literal, TypeAlias, get_args

from attrs import frozen

from adapters.standins.planning_center.organization import Organization
from adapters.standins.planning_center.resources import BY_TYPE, Resource
from adapters.standins.planning_center.table import Row, Test

Operator = Literal["is", "gt", "gte", "lt", "lte"]
Operand: TypeAlias = str | float | bool
Unqueryable = Literal["ignore", "refuse"]

_WHERE = re.compile(r"where\[(\w+)\](?:\[(\w+)\])?")
_FIELDS = re.compile(r"fields\[(\w+)\]")
_MOST_PER_PAGE = 100


class Malformed(ValueError):
    """A parameter that the API answers with 400."""

    def __init__(self, parameter: str, detail: str) -> None:
        self.parameter, self.detail = parameter, detail
        super().__init__(f"{parameter}: {detail}")


@frozen
class Condition:
    attribute: str
    operator: Operator
    operand: Operand


@frozen
class Query:
    per_page: int
    offset: int
    order: str
    where: tuple[Condition, ...]
    include: tuple[str, ...]
    fields: Mapping[str, frozenset[str]]
    filter: Condition | None
    sent: tuple[tuple[str, str], ...]  # all that was sent but the offset, for the links to other pages

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return (*self.where, self.filter) if self.filter else self.where

    @property
    def reusable(self) -> bool:
        """Whether the rows found depend on this resource's rows alone."""
        return not any(condition.attribute.startswith("search_") for condition in self.conditions)


def understand(resource: Resource, pairs: Iterable[tuple[str, str]], *, unqueryable: Unqueryable = "ignore") -> Query:
    """The query, or `Malformed`. What may not be filtered by is left out without a word, unless `unqueryable` says refuse."""
    sent = tuple(pairs)
    last = dict(sent)
    return Query(
        per_page=_whole("per_page", last.get("per_page", "25"), 1, _MOST_PER_PAGE),
        offset=_whole("offset", last.get("offset", "0"), 0, 2**62),
        order=_order(resource, last.get("order")),
        where=tuple(_conditions(resource, sent, unqueryable)),
        include=_include(resource, last.get("include", "")),
        fields=_fields(sent),
        filter=_filter(resource, last),
        sent=tuple(pair for pair in sent if pair[0] != "offset"),
    )


def _whole(parameter: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise Malformed(parameter, f"must be a whole number from {least} to {most}")
    return int(text)


def _order(resource: Resource, text: str | None) -> str:
    if text is None:
        return "id"
    if text.removeprefix("-") not in resource.order_by:
        raise Malformed("order", f"{resource.type} cannot be ordered by {text!r}")
    return text


def _include(resource: Resource, text: str) -> tuple[str, ...]:
    paths = tuple(dict.fromkeys(part for part in text.split(",") if part))
    for path in paths:
        known: Resource | None = resource
        for name in path.split(".")[:3]:
            if known is None or name not in known.can_include or path.count(".") > 1:
                raise Malformed("include", f"{path!r} cannot be included")
            edge = known.edges.get(name)
            known = BY_TYPE[edge.target] if edge else None
    return paths


def _fields(sent: Iterable[tuple[str, str]]) -> dict[str, frozenset[str]]:
    found = ((_FIELDS.fullmatch(name), value) for name, value in sent if name.startswith("fields"))
    fields: dict[str, frozenset[str]] = {}
    for match, value in found:
        if match is None:
            raise Malformed("fields", "must be written fields[Type]=a,b")
        fields[match[1]] = frozenset(value.split(","))
    return fields


def _filter(resource: Resource, sent: Mapping[str, str]) -> Condition | None:
    name = sent.get("filter")
    if name is None:
        return None
    if name not in resource.can_filter:
        raise Malformed("filter", f"{resource.type} has no filter {name!r}")
    if name == "created_since":
        return Condition("created_at", "gte", _instant("time", sent.get("time", "")))
    return Condition("site_administrator", "is", True)


def _conditions(resource: Resource, sent: Iterable[tuple[str, str]], unqueryable: Unqueryable) -> Iterable[Condition]:
    for name, value in sent:
        if not name.startswith("where"):
            continue
        match = _WHERE.fullmatch(name)
        if match is None:
            raise Malformed(name, "must be written where[attribute] or where[attribute][operator]")
        attribute, operator = match[1], match[2] or "is"
        if attribute in resource.query_by:
            yield _condition(resource, attribute, operator, value)
        elif unqueryable == "refuse":
            raise Malformed(name, f"{resource.type} cannot be queried by {attribute!r}")


def _condition(resource: Resource, attribute: str, operator: str, value: str) -> Condition:
    kind = resource.kind(attribute)
    parameter = f"where[{attribute}]"
    for known in get_args(Operator):
        if known == operator and (known == "is" or kind in ("number", "date", "instant")):
            return Condition(attribute, known, _OPERANDS[kind](parameter, value))
    raise Malformed(parameter, f"{operator!r} is no operator for {attribute}")


def _text(parameter: str, value: str) -> str:
    return value.casefold()


def _digits(parameter: str, value: str) -> str:
    if not (value.isascii() and value.isdigit()):
        raise Malformed(parameter, "must be an id")
    return value


def _number(parameter: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise Malformed(parameter, "must be a number") from None


def _flag(parameter: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise Malformed(parameter, "must be true or false")
    return value == "true"


def _date(parameter: str, value: str) -> str:
    try:
        return date.fromisoformat(value).isoformat()
    except ValueError:
        raise Malformed(parameter, "must be a date, such as 2025-06-01") from None


def _instant(parameter: str, value: str) -> str:
    """UTC without the Z: stored instants are compared as text, and `00.5` must come after `00`."""
    try:
        moment = datetime.fromisoformat(value)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Malformed(parameter, "must be a date or time, such as 2025-06-01T00:00:00Z") from None
    return moment.replace(tzinfo=None).isoformat()


_OPERANDS: Mapping[str, Callable[[str, str], Operand]] = {
    "text": _text,
    "number": _number,
    "flag": _flag,
    "date": _date,
    "instant": _instant,
    "id": _digits,
    "json": _text,
}


def ordered_since(resource: Resource, query: Query) -> tuple[str | None, tuple[Condition, ...]]:
    """The instant from which rows are asked for by the very attribute that orders them, as who pages by time does; and the other conditions."""
    attribute = query.order.removeprefix("-")
    if resource.kind(attribute) != "instant":
        return None, query.conditions
    for one in query.conditions:
        if one.attribute == attribute and one.operator == "gte":
            return str(one.operand), tuple(other for other in query.conditions if other is not one)
    return None, query.conditions


def matcher(organization: Organization, resource: Resource, conditions: tuple[Condition, ...]) -> Test | None:
    """Whether a row fulfils every condition; None if there is none to fulfil."""
    tests = [_test(organization, resource, condition) for condition in conditions]
    if len(tests) < 2:
        return tests[0] if tests else None
    return lambda row: all(test(row) for test in tests)


def _test(organization: Organization, resource: Resource, condition: Condition) -> Test:
    attribute, kind, operand = condition.attribute, resource.kind(condition.attribute), condition.operand
    if attribute.startswith("search_"):
        return lambda row: any(str(operand).strip("%") in text for text in _searched(organization, row, attribute))
    if attribute == "id":
        return lambda row: row.id == operand
    if attribute == "primary_campus_id":
        return lambda row: str(row.linked("primary_campus")) == operand
    if kind == "text":
        pattern = re.compile(".*".join(map(re.escape, str(operand).split("%"))), re.DOTALL)
        return lambda row: row.attributes[attribute] is not None and pattern.fullmatch(row.text(attribute).casefold()) is not None
    if kind == "instant":
        return _compared(condition, lambda row: row.text(attribute)[:-1])
    if kind == "date":
        return _compared(condition, lambda row: row.text(attribute))
    return lambda row: _holds(row.attributes[attribute], condition)


def _compared(condition: Condition, text: Callable[[Row], str]) -> Test:
    operand = str(condition.operand)
    tests: Mapping[Operator, Test] = {
        "is": lambda row: text(row) == operand,
        "gt": lambda row: text(row) > operand,
        "gte": lambda row: text(row) >= operand,
        "lt": lambda row: "" < text(row) < operand,
        "lte": lambda row: "" < text(row) <= operand,
    }
    return tests[condition.operator]


def _holds(value: object, condition: Condition) -> bool:
    operand = condition.operand
    if condition.operator == "is" or not isinstance(value, (int, float)) or isinstance(operand, str):
        return value == operand
    if condition.operator == "gt":
        return value > operand
    if condition.operator == "gte":
        return value >= operand
    return value < operand if condition.operator == "lt" else value <= operand


def _searched(organization: Organization, person: Row, attribute: str) -> Iterable[str]:
    if "name" in attribute:
        yield from (person.text(name).casefold() for name in ("name", "nickname", "given_name"))
    if "email" in attribute:
        yield from (row.text("address").casefold() for row in organization.tables["Email"].belonging("person", person.number))
    if "phone_number" in attribute:
        spelling = "e164" if attribute.endswith("e164") else "national"
        yield from (row.text(spelling) for row in organization.tables["PhoneNumber"].belonging("person", person.number))
