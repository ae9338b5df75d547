"""What lint finds, and how a line says that it is meant so."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from os.path import basename
from typing import Any, Final, Literal, TypeAlias

from attrs import frozen

from flowdsl.outline.source import lines

Severity: TypeAlias = Literal["error", "warning"]

RULES: Final[dict[str, Severity]] = {
    "clock": "error",
    "chance": "error",
    "environment": "error",
    "io": "error",
    "secret": "error",
    "async": "error",
    "try": "error",
    "dropped": "error",
    "bare-yield": "error",
    "flow-as-list": "error",
    "set-order": "error",
    "loop-variable": "error",
    "lost-in-iterate": "error",
    "at-most-once": "error",
    "allow": "error",
    "output": "warning",
    "global-state": "warning",
    "no-timeout": "warning",
    "unbounded": "warning",
    "long-loop": "warning",
    "undo-missing": "warning",
    "undo-in-loop": "warning",
}
"""Every rule: an error breaks a run or its replay, a warning asks for a second look."""


@frozen(order=True)
class Finding:
    """A mistake in a body: where it is, and what to do about it."""

    file: str
    line: int
    rule: str
    severity: Severity
    message: str
    function: str

    def facts(self) -> dict[str, Any]:
        """The finding as plain data."""
        return {
            "rule": self.rule, "severity": self.severity, "message": self.message, "file": self.file, "line": self.line, "function": self.function,
        }  # fmt: skip

    def __str__(self) -> str:
        return f"{basename(self.file)}:{self.line}: {self.severity} {self.rule}: {self.message}"


def finding(rule: str, message: str, file: str, line: int, function: str) -> Finding:
    return Finding(file, line, rule, RULES[rule], message, function)


_ALLOW = re.compile(r"#\s*flowdsl:\s*allow\b\s*([\w-]*)\s*(.*)")
_REASON = re.compile(r"because\s+\S.*", re.S)


@frozen
class Allowed:
    """A comment that lets one rule pass on a line."""

    rule: str
    reason: str
    line: int
    alone: bool


@cache
def _comments(file: str, text: str) -> tuple[Allowed, ...]:
    found: list[Allowed] = []
    try:
        for token in tokenize.generate_tokens(iter(text.splitlines(keepends=True)).__next__):
            if token.type == tokenize.COMMENT and (match := _ALLOW.match(token.string)):
                found.append(Allowed(match[1], match[2].strip(), token.start[0], not token.line[: token.start[1]].strip()))
    except (tokenize.TokenError, SyntaxError):
        pass
    return tuple(found)


def allowed(file: str) -> tuple[Allowed, ...]:
    """The comments of a file that let something pass."""
    return _comments(file, "".join(lines(file)))


def heeded(findings: Iterable[Finding], spans: Iterable[tuple[str, int, int, str]]) -> Iterator[Finding]:
    """Without what is allowed, with a reason, on its line or on a line of its own above it; and what is wrong with such comments in these lines."""
    unused = {(file, one) for file, begin, end, _ in spans for one in allowed(file) if begin <= one.line <= end}
    wrong = {(file, one): _wrong(one) for file, one in unused}
    names = {(file, one): name for file, begin, end, name in spans for one in allowed(file) if begin <= one.line <= end}
    for one in findings:
        fitting = [
            allow for allow in allowed(one.file) if allow.rule == one.rule and allow.line in (one.line, one.line - 1 if allow.alone else one.line)
        ]
        unused -= {(one.file, allow) for allow in fitting}
        if not any(_REASON.match(allow.reason) for allow in fitting):
            yield one
    for (file, allow), message in wrong.items():
        if message or (file, allow) in unused:
            said = message or f"nothing here breaks {allow.rule} any more: take the comment away"
            yield finding("allow", said, file, allow.line, names[file, allow])


def _wrong(one: Allowed) -> str:
    if one.rule not in RULES:
        return f"there is no rule {one.rule!r}: the rules are {', '.join(sorted(RULES))}"
    if not _REASON.match(one.reason):
        return f"no reason is given: write `# flowdsl: allow {one.rule} because …`"
    return ""


__all__ = ["RULES", "Allowed", "Finding", "Severity", "allowed", "finding", "heeded"]
