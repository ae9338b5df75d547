"""What is handed out to run flowdsl elsewhere: the image, the compose file, the systemd unit.

No engine builds the image here. What its file says is done by hand instead: the same commands, in a fresh folder, by an account that is not
root, with no variables but the file's own.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from attrs import frozen
from pathspec import PathSpec

from flowdsl.cli import main
from flowdsl.service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "docs" / "how-to" / "flowdsl.service"
PAGE = ROOT / "docs" / "how-to" / "deploy.md"
MINORS = ("", ".14", ".13", ".12", ".11")
LONG = pytest.mark.skipif(not os.environ.get("FLOWDSL_LONG"), reason="the long form: FLOWDSL_LONG=1")


@frozen
class Instruction:
    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words of its exec form, or of its copy, options left out."""
        if "[" in self.text:
            found: list[str] = json.loads(self.text[self.text.index("[") :])
            return found
        return [word for word in shlex.split(self.text) if not word.startswith("--")]


def read(text: str) -> list[Instruction]:
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.M))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def images() -> dict[str, list[Instruction]]:
    """Our own image, and the one that a page shows for a project."""
    (shown,) = re.findall(r"^```dockerfile\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return {"Dockerfile": read((ROOT / "Dockerfile").read_text(encoding="utf-8")), "deploy.md": read(shown)}


def accepted(command: Sequence[str]) -> None:
    """Our command line takes it; nothing is run."""
    main.commands[command[0]].make_context(command[0], list(command[1:]))


def installed(program: str) -> str:
    """Where it is: beside this Python, or on PATH."""
    found = shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if found is None:
        pytest.skip(f"there is no {program} here")
    return found


# The image


@pytest.mark.parametrize("name", ["Dockerfile", "deploy.md"])
def test_the_image_is_slim_and_not_roots(name: str) -> None:
    steps = images()[name]
    bases = [step.words[0] for step in steps if step.name == "FROM"]
    assert len(bases) == 2 and set(bases) == {"python:3.13-slim"}
    last = steps[max(at for at, step in enumerate(steps) if step.name == "FROM") :]
    users = [step for step in last if step.name == "USER"]
    assert users[-1].text == "10001:10001" and last.index(users[-1]) > max(at for at, step in enumerate(last) if step.name in ("RUN", "COPY"))
    (entry,) = [step.words for step in last if step.name == "ENTRYPOINT"]
    (command,) = [step.words for step in last if step.name == "CMD"]
    (health,) = [step for step in last if step.name == "HEALTHCHECK"]
    assert entry == ["flowdsl"] and f":{Settings().server.port}/health" in health.text
    accepted(command)


def test_the_image_holds_what_it_needs_and_nothing_else() -> None:
    """Everything that is copied may be; what the folder holds beside it does not even reach the builder."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    ignored = PathSpec.from_lines("gitignore", lines)
    sources = [word for step in images()["Dockerfile"] if step.name == "COPY" and "--from" not in step.text for word in step.words[:-1]]
    assert sorted(sources) == ["LICENSE", "README.md", "adapters", "constraints.txt", "domains", "flowdsl", "pyproject.toml"]
    assert [source for source in sources if not (ROOT / source).exists() or ignored.match_file(source)] == []
    for secret in (
        ".env",
        ".git/config",
        "flowdsl.toml",
        ".venv/pyvenv.cfg",
        "docs/tutorial.md",
        "key.pem",
        "flowdsl/__pycache__/flow.cpython-313.pyc",
    ):
        assert ignored.match_file(secret), secret


@pytest.mark.parametrize("name", ["Dockerfile", "deploy.md"])
def test_a_linter_finds_nothing_in_the_image(name: str, tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text("".join(f"{step.name} {step.text}\n" for step in images()[name]))
    done = subprocess.run([installed("hadolint"), str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# The compose file


def composed() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return found


def test_the_compose_file_runs_what_there_is() -> None:
    services = composed()["services"]
    assert list(services) == ["postgres", "migrate", "service", "worker"]
    for name, service in services.items():
        assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")
        assert set(service.get("depends_on", {})) <= set(services)
        if service.get("image") == "flowdsl":
            accepted(service["command"])
            assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["init"]
            assert "${POSTGRES_PASSWORD:?" in service["environment"]["FLOWDSL_DATABASE_URL"], "no password is written down"
    (port,) = services["service"]["ports"]
    assert port == "127.0.0.1:8084:8084", "nobody outside this machine reaches it without a proxy"


def test_the_compose_program_reads_it() -> None:
    settings = {**os.environ, "POSTGRES_PASSWORD": "secret"}
    command = [installed("docker-compose"), "--file", str(ROOT / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    settings.pop("POSTGRES_PASSWORD")
    refused = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert refused.returncode != 0 and "choose one" in refused.stderr


# The unit


def test_the_unit_starts_what_there_is() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[method-assign, assignment]
    unit.read_string(UNIT.read_text(encoding="utf-8"))
    for key in ("ExecStartPre", "ExecStart"):
        program, *command = shlex.split(unit["Service"][key])
        assert program.endswith("/bin/flowdsl")
        accepted(command)


def test_systemd_accepts_the_unit_and_finds_it_hardened(tmp_path: Path) -> None:
    analyze = installed("systemd-analyze")
    file = tmp_path / "flowdsl.service"
    file.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/shop/.venv/bin/flowdsl", "/bin/true"))
    verified = subprocess.run([analyze, "verify", str(file)], capture_output=True, text=True)
    if "Failed to" in verified.stderr and "manager" in verified.stderr:
        pytest.skip(verified.stderr)
    assert (verified.returncode, verified.stderr.strip()) == (0, "")
    judged = subprocess.run([analyze, "security", "--offline=yes", "--threshold=20", "--no-pager", str(file)], capture_output=True, text=True)
    assert judged.returncode == 0, judged.stdout[-200:]


# By hand


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other accounts may look into."""
    folder = Path(tempfile.mkdtemp(prefix="flowdsl-image-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class Builder:
    """Does what a Dockerfile says, with `root` in place of /: as a person without rights would."""

    def __init__(self, root: Path, context: Path) -> None:
        self.root, self.context = root, context
        self.account: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        self.variables: dict[str, str] = {}
        self.folder = root
        self.command: dict[str, list[str]] = {}

    def at(self, text: str) -> str:
        return text.replace("/app", str(self.root / "app"))

    def build(self, steps: Sequence[Instruction]) -> None:
        for step in steps:
            getattr(self, f"do_{step.name.lower()}")(step)

    def do_from(self, step: Instruction) -> None:
        if (self.root / "app").exists():
            (self.root / "app").rename(self.root / "build")
        self.variables = {"PATH": f"{self._python()}:/usr/bin:/bin", "HOME": "/nonexistent"}

    def _python(self) -> Path:
        """A folder with a `python` that the account may run: what the base image has."""
        folder = self.root / "python"
        for candidate in (os.path.realpath(sys.executable), *(shutil.which(f"python3{minor}", path="/usr/bin:/usr/local/bin") for minor in MINORS)):
            code = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
            try:
                works = candidate and subprocess.run([candidate, "-c", code], env={}, cwd="/", capture_output=True, **self.account).returncode == 0
            except PermissionError:
                continue
            if works and candidate:
                folder.mkdir(exist_ok=True)
                (folder / "python").unlink(missing_ok=True)
                (folder / "python").symlink_to(candidate)
                return folder
        pytest.skip("an account that is not root has no Python 3.11 here")

    def do_workdir(self, step: Instruction) -> None:
        self.folder = Path(self.at(step.text))
        self.folder.mkdir(parents=True)
        if self.account:
            os.chown(self.folder, 65534, 65534)

    def do_env(self, step: Instruction) -> None:
        for word in shlex.split(step.text):
            name, _, value = word.partition("=")
            self.variables[name] = self.at(value).replace("$PATH", self.variables["PATH"])

    def do_copy(self, step: Instruction) -> None:
        stage = re.match(r"--from=build ", step.text)
        *sources, target = step.words
        for source in sources:
            origin = self.root / "build" / source.removeprefix("/app/") if stage else self.context / source
            there = self.folder if target == "./" else self.folder / target
            if origin.is_dir():
                shutil.copytree(origin, there, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(origin, there)

    def do_run(self, step: Instruction) -> None:
        if step.text.startswith("useradd "):
            return
        registry = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}
        variables = {**registry, **self.variables}
        shell = ["/bin/sh", "-c", step.text]
        done = subprocess.run(shell, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=300, **self.account)
        if re.search(r"NewConnectionError|Could not fetch|No matching distribution", done.stderr):
            pytest.skip(f"packages cannot be had here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stdout + done.stderr

    def _keep(self, step: Instruction) -> None:
        self.command[step.name] = step.words

    do_cmd = do_entrypoint = do_healthcheck = _keep

    def _pass(self, step: Instruction) -> None:
        """An account, a port: not ours to give."""

    do_user = do_expose = _pass


@LONG
@pytest.mark.timeout(400)
def test_what_the_image_holds_runs(place: Path) -> None:
    builder = Builder(place, ROOT)
    builder.build(images()["Dockerfile"])
    command = [*builder.command["ENTRYPOINT"], *builder.command["CMD"]]
    command[command.index("0.0.0.0")] = "127.0.0.1"
    (place / "state").mkdir(mode=0o700)
    if builder.account:
        os.chown(place / "state", 65534, 65534)
    clean = {**builder.variables, "FLOWDSL_STATE_DIR": str(place / "state")}  # a database that this account may reach
    with subprocess.Popen(
        [*command, "--port", "0", "--keys"],
        cwd=place / "app",
        env=clean,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **builder.account,
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            listens = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert listens, process.stderr.read()
            program = [word.replace(":8084", f":{listens[1]}") for word in builder.command["HEALTHCHECK"]]
            for expected in (0, 1):
                health = subprocess.run(program, cwd=place / "app", env=clean, capture_output=True, text=True, **builder.account)
                assert health.returncode == expected, health.stderr
                if not expected:
                    process.send_signal(signal.SIGTERM)
                    assert process.wait(60) == 0
            told = process.stderr.read()
            assert "there is no API key yet, so nobody is let in" in told, told
        finally:
            process.kill()
    assert list((place / "app").rglob("__pycache__")) == [] or all(".venv" in path.parts for path in (place / "app").rglob("__pycache__"))
