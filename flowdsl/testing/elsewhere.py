"""The same workflow in another process, where hashes are others: what was recorded here is folded there.

Sets of texts, and all that is made in their order, come out otherwise there. Nothing else of a run shows that.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any, Final

from attrs import frozen

from flowdsl.activation import Activation, live_entries
from flowdsl.definition import Workflow
from flowdsl.flow import Execution
from flowdsl.journal import Divergence, Entry, encode_exit

SEEDS: Final = (1, 2, 3)
"""Hash seeds: two texts in a set change places under one of them, most likely."""
PATIENCE: Final = 60
"""Seconds that a process may take."""
MOST: Final = 200
"""Journals that are folded there."""


@frozen
class Recorded:
    """An execution as it was recorded here. `index`: of the world that it is from."""

    index: int
    execution: Execution
    version: int
    request: bytes
    journal: tuple[Entry, ...]
    exit: bytes


@frozen
class Differs:
    """What one of them asks there."""

    index: int
    what: str


@frozen
class _Place:
    """Where a workflow is defined."""

    module: str
    file: str
    name: str


def place_of(workflow: Workflow[Any, Any, Any]) -> _Place | str:
    """Where another process finds it; else why not, in words."""
    body = workflow.body
    module, name = sys.modules.get(body.__module__), str(getattr(workflow, "__qualname__", ""))
    file = getattr(module, "__file__", None)
    if "<locals>" in name:
        return "the workflow is defined within a function: another process cannot find it there"
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not workflow or file is None or body.__module__ == "__main__":
        return f"{body.__module__}.{name} is not this workflow: another process would not find it"
    return _Place(body.__module__, file, name)


def differs(recorded: Sequence[tuple[Recorded, Workflow[Any, Any, Any]]]) -> list[Differs] | str:
    """Which of these ask for something else under other hash seeds; or, in words, why nobody can say."""
    places: dict[tuple[str, int], _Place] = {}
    for _, workflow in recorded[:MOST]:
        place = places.get((workflow.name, workflow.version)) or place_of(workflow)
        if isinstance(place, str):
            return place
        places[workflow.name, workflow.version] = place
    told = pickle.dumps((tuple(sys.path), places, [one for one, _ in recorded[:MOST]]))
    running = [_started(seed) for seed in SEEDS]
    try:
        return _heard(told, running)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.communicate()


def _heard(told: bytes, running: Sequence[subprocess.Popen[bytes]]) -> list[Differs] | str:
    found: list[Differs] = []
    for process in running:
        try:
            answer, errors = process.communicate(told, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return f"another process took longer than {PATIENCE} seconds to fold what was recorded here"
        if process.returncode:
            last = errors.decode(errors="replace").strip().splitlines()[-1:]
            return f"another process cannot fold what was recorded here: {' '.join(last)}"
        found += pickle.loads(answer)  # from our own child
    return found


def _started(seed: int) -> subprocess.Popen[bytes]:
    code = "import sys; from flowdsl.testing.elsewhere import main; main(sys.stdin.buffer.read())"
    path = os.pathsep.join(one for one in sys.path if one)
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": path}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, env=environment)


def main(told: bytes) -> None:
    """In the other process: folds what it is given, and writes what differs."""
    path, places, recorded = pickle.loads(told)  # from the process that started this one
    answers, sys.stdout = sys.stdout.buffer, sys.stderr  # what a module prints when it is imported is no answer
    sys.path[:] = [*path, *(one for one in sys.path if one not in path)]
    versions = {key: _found(place) for key, place in places.items()}
    newest = {name: versions[name, version] for name, version in sorted(versions)}
    found = [(one, _difference(one, versions[one.execution.workflow, one.version], newest.__getitem__)) for one in recorded]
    answers.write(pickle.dumps([Differs(one.index, what) for one, what in found if what]))
    answers.flush()


def _found(place: _Place) -> Any:
    found: Any = _module(place)
    for part in place.name.split("."):
        found = getattr(found, part)
    return found


def _module(place: _Place) -> Any:
    try:
        module = import_module(place.module)
        if getattr(module, "__file__", None) == place.file:
            return module
    except ImportError:
        pass
    spec = spec_from_file_location(place.module, place.file)
    assert spec is not None and spec.loader is not None, place.file
    module = sys.modules[place.module] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _difference(one: Recorded, workflow: Workflow[Any, Any, Any], definitions: Any) -> str:
    activation = Activation(one.execution, workflow, one.request, definitions)
    try:
        activation.fold.replay(live_entries(one.journal))
    except Divergence as error:
        return str(error)
    exit = activation.fold.machine.exit
    if one.exit and (exit is None or encode_exit(workflow, exit) != one.exit):
        return f"it ended with {one.exit.decode(errors='replace')}; there it ends with {exit}"
    return ""
