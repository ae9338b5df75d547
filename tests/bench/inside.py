"""The machine, the fold and the codec alone, in memory: microseconds a step. And what importing takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta

from returns.result import Success

from flowdsl.codec import codec
from flowdsl.flow import Do, Execution
from flowdsl.journal import SUCCESS
from flowdsl.machine import Machine
from flowdsl.postgres.worker import new_id
from tests.bench.history import BEGUN, activated, driven
from tests.bench.measured import middle
from tests.bench.subject import Noted, noted, sequence


def measure(steps: int, rounds: int) -> dict[str, float]:
    """Medians of some rounds."""
    entries = driven(sequence, steps + 1, [], steps)
    row, codec_of = noted(7), codec(Noted)
    data = codec_of.encode(row)
    plain = json.loads(data)

    def fold() -> None:
        activated(sequence, steps + 1, new_id()).begin(entries, (), BEGUN)

    def feed() -> None:
        activation = activated(sequence, steps, new_id())
        activation.begin((), (), BEGUN)
        answer, now = Success(row), BEGUN
        while activation.fold.machine.exit is None:
            for one in activation.take_turn().performs:
                now += timedelta(microseconds=100)
                activation.ended(one.step, answer, now)

    def machine() -> None:
        bare = Machine(Execution(new_id(), "default", sequence.name, None, None, BEGUN), Do(sequence.body, (steps,)))
        bare.start()
        for position in range(steps):
            bare.opened.clear()
            bare.resume(str(position), SUCCESS, row, position=position, at=BEGUN)

    return {
        "machine alone: resume, no codec": timed(machine, steps, rounds),
        "feed: an answer in, a turn out (encode, fold, fingerprint, site, decode)": timed(feed, steps, rounds),
        "fold: an entry read back (fingerprint checked, decode)": timed(fold, steps, rounds),
        "codec: encode 100 bytes": timed(lambda: repeat(lambda: codec_of.encode(row), steps), steps, rounds),
        "codec: decode 100 bytes": timed(lambda: repeat(lambda: codec_of.decode(data), steps), steps, rounds),
        "json.dumps of the same": timed(lambda: repeat(lambda: json.dumps(plain), steps), steps, rounds),
        "json.loads of the same": timed(lambda: repeat(lambda: json.loads(data), steps), steps, rounds),
    }


def imports(rounds: int) -> dict[str, float]:
    """Milliseconds of importing what a worker takes, by package, the most first; each in a process of its own, with its bytecode."""
    command = [sys.executable, "-X", "importtime", "-c", "import flowdsl.postgres.worker"]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    told = [subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stderr for _ in range(rounds + 1)][1:]
    found = [_by_package(one) for one in told]
    middles = {name: middle([one.get(name, 0.0) for one in found]) for name in found[0]}
    return dict(sorted(middles.items(), key=lambda one: -one[1]))


def _by_package(told: str) -> dict[str, float]:
    """Of lines `import time: self µs | cumulative µs | name`."""
    found: dict[str, float] = {}
    for line in told.splitlines():
        took, _, name = line.removeprefix("import time:").split("|") if line.count("|") == 2 else ("", "", "")
        if took.strip().isdigit():
            package = _owner(name.strip().partition(".")[0])
            found[package] = found.get(package, 0.0) + int(took) / 1e3
    large = {name: took for name, took in found.items() if took >= 2}
    return large | {"others": sum(found.values()) - sum(large.values())}


def _owner(module: str) -> str:
    if module in sys.stdlib_module_names or module.startswith("_sysconfigdata"):
        return "the standard library"
    return {"attr": "attrs", "pygments": "rich"}.get(module, module)


def repeat(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()


def timed(work: Callable[[], object], steps: int, rounds: int) -> float:
    found: list[float] = []
    for _ in range(rounds):
        begun = time.process_time()
        work()
        found.append((time.process_time() - begun) / steps * 1e6)
    return middle(found)
