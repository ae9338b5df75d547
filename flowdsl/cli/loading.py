"""From MODULE:DEPLOYMENT to a deployment, from JSON to a workflow's input. What is wrong is told in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowdsl.cli.edge import Refusal

if TYPE_CHECKING:
    from flowdsl.binding import Deployment
    from flowdsl.definition import Workflow


def load(target: str) -> Deployment:
    """The deployment that MODULE:ATTRIBUTE names, with the current folder on the path. Raises `Refusal`."""
    import importlib

    from flowdsl.errors import DeploymentError, FlowError

    module_name, _, attribute = target.partition(":")
    attribute = attribute or "deployment"
    if module_name.endswith(".py") or "/" in module_name:
        meant = module_name.removesuffix(".py").removeprefix("./").replace("/", ".")
        raise Refusal(f"{module_name} is a file, and a module is asked for: did you mean {meant}:{attribute}?")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise _unknown(module_name, attribute) from None
        raise Refusal(f"{module_name} cannot be imported: {_place(error)}: {error}: is it installed here ({sys.executable})?") from None
    except DeploymentError as error:
        text = f"this deployment cannot run: {error.problems[0]}" if len(error.problems) == 1 else str(error)
        raise Refusal(f"{_place(error)}: {text}") from None
    except FlowError as error:
        raise Refusal(f"{_place(error)}: {error}") from None
    except (Exception, SystemExit) as error:
        said = getattr(error, "msg", None) if isinstance(error, SyntaxError) else error
        raise Refusal(f"{module_name} cannot be imported: {_place(error)}: {type(error).__name__}: {said}") from None
    return _attribute(module, module_name, attribute)


def _attribute(module: Any, module_name: str, attribute: str) -> Deployment:
    from difflib import get_close_matches

    from flowdsl.binding import Deployment

    found = getattr(module, attribute, None)
    if isinstance(found, Deployment):
        return found
    there = [name for name, value in vars(module).items() if isinstance(value, Deployment)]
    near = get_close_matches(attribute, there, 1) or there
    hint = f"did you mean {module_name}:{near[0]}?" if near else "put Deployment(workflows=[…], bindings=[…]) there"
    what = f"has no {attribute!r}" if found is None else f"has {attribute!r}, but it is of class {type(found).__name__}, no Deployment"
    raise Refusal(f"{module_name} {what}: {hint}")


def _unknown(module_name: str, attribute: str) -> Refusal:
    from difflib import get_close_matches

    near = get_close_matches(module_name, list(_modules(Path.cwd())), 1)
    hint = f"did you mean {near[0]}:{attribute}?" if near else "name it as MODULE:DEPLOYMENT, from the folder that holds it"
    return Refusal(f"there is no module {module_name!r} in {Path.cwd()} or installed: {hint}")


def _modules(folder: Path, before: str = "", depth: int = 3) -> Iterator[str]:
    for path in folder.iterdir():
        name = before + path.stem
        if path.suffix == ".py" and path.stem.isidentifier():
            yield name
        elif depth and path.name.isidentifier() and path.is_dir():
            yield name
            yield from _modules(path, f"{name}.", depth - 1)


def _place(error: BaseException) -> str:
    """Where in the user's own code it happened: file and line."""
    import sysconfig
    import traceback

    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{_near(error.filename)}:{error.lineno}"
    libraries = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), str(Path(__file__).parents[1]), "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(libraries)] or frames
    return f"{_near(own[-1].filename)}:{own[-1].lineno}"


def _near(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def workflow_of(deployment: Deployment, name: str) -> Workflow[Any, Any, Any]:
    """The workflow of that name. Raises `Refusal` with the one that may be meant, and those there are."""
    from difflib import get_close_matches

    from flowdsl.errors import NotFound

    try:
        return deployment.workflow(name)
    except NotFound as error:
        near = get_close_matches(name, deployment.names, 1)
        if not near:
            raise
        raise Refusal(f"no workflow named {name!r}: did you mean {near[0]}? Known: {', '.join(sorted(error.known)[:20])}.") from None


def read_input(text: str | None, workflow: Workflow[Any, Any, Any]) -> Any:
    """A workflow's input from JSON, a file (`@name`) or stdin (`-`). Raises `Refusal` with the path of each bad field."""
    from flowdsl.codec import Undecodable
    from flowdsl.journal import codecs_of

    data = b"null" if text is None else _bytes(text)
    try:
        return codecs_of(workflow).request.decode(data, root="input")
    except Undecodable as error:
        if text is None:
            raise Refusal(f"{workflow.name} needs an input: give it with --input JSON, --input @file, or --input - for stdin") from None
        came = f", got {data[:60].decode(errors='replace')!r}{' …' if len(data) > 60 else ''}"
        problems = [f"{path}: {problem}{came if problem.startswith('expected JSON: ') else ''}" for path, problem in error.problems]
        first = f" {problems[0]}" if len(problems) == 1 else "".join(f"\n  {one}" for one in problems)
        raise Refusal(f"--input does not fit {workflow.name}:{first}") from None


def _bytes(text: str) -> bytes:
    if text == "-":
        return sys.stdin.buffer.read()
    if text.startswith("@"):
        try:
            return Path(text[1:]).read_bytes()
        except OSError as error:
            raise Refusal(f"--input: {text[1:] or 'no file'} cannot be read: {error.strerror}") from None
    return text.encode("utf-8", "surrogateescape")
