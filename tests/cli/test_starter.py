"""`flowdsl new`: what it makes works as it stands, and it makes nothing where something is."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTEST = ["-p", "no:schemathesis", "-p", "no:cacheprovider", "--hypothesis-profile=ci"]
"""That profile has no deadline for an example: a machine that is busy is no failure."""
LONG = pytest.mark.skipif(not os.environ.get("FLOWDSL_LONG"), reason="the long form: FLOWDSL_LONG=1")


def new(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "flowdsl", "new", *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As in a newcomer's shell: their own variables, and none of ours."""
    ours = re.compile(r"VIRTUAL_ENV|PYTHON|PYTEST|FLOWDSL_(?!UNSAFE)|CI$|OUTSIDE")
    kept = {name: value for name, value in os.environ.items() if not ours.match(name)}
    return subprocess.run(command, cwd=folder, env={**kept, **environment}, capture_output=True, text=True, timeout=250)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("newcomer")
    made = new(folder, "shop", "--json")
    facts = json.loads(made.stdout)
    assert made.returncode == 0 and (facts["folder"], facts["package"]) == ("shop", "shop"), made.stderr
    there = sorted(str(path.relative_to(folder / "shop")) for path in (folder / "shop").rglob("*") if path.is_file())
    assert there == sorted(facts["files"])
    assert {"dev", ".gitignore", "README.md", "pyproject.toml", "shop/orders.py", "tests/test_orders.py", "tests/test_worlds.py"} <= set(there)
    assert [path.name for path in folder.iterdir()] == ["shop"], "nothing is left behind"
    return folder / "shop"


def test_its_tests_pass_and_its_demo_kills_a_worker(shop: Path, database: str) -> None:
    active = {"VIRTUAL_ENV": sys.prefix}  # the environment that we run in has all of it: none is made
    tests = run(shop, "./dev", "test", *PYTEST, **active)
    assert tests.returncode == 0 and re.search(r"\b9 passed", tests.stdout), tests.stdout + tests.stderr
    demo = run(shop, "./dev", "demo", FLOWDSL_DATABASE_URL=database, **active)
    log = (shop / "demo.log").read_text()
    assert demo.returncode == 0, demo.stdout + demo.stderr + log
    assert "the worker is killed" in demo.stdout and "another worker went on" in demo.stdout
    assert "19 were paid, 19 parcels went out" in demo.stdout and "paid twice: none; paid and not sent: none" in demo.stdout
    assert not (shop / ".venv").exists()
    listed = run(shop, "./dev", "flowdsl", "list", "--status", "succeeded", "--json", FLOWDSL_DATABASE_URL=database, **active)
    assert len(json.loads(listed.stdout)) == 19, listed.stderr


def test_it_is_as_tidy_as_we_are(shop: Path) -> None:
    for check in ("ruff check --no-cache .", "ruff format --no-cache --check .", "flowdsl lint shop.deployment:deployment"):
        done = run(shop, sys.executable, "-m", *check.split())
        assert done.returncode == 0, done.stdout + done.stderr


@LONG
def test_without_its_undo_a_drawn_world_finds_the_bug(shop: Path, tmp_path: Path) -> None:
    """What the tutorial says of it."""
    copied = Path(shutil.copytree(shop, tmp_path / "shop"))
    orders = copied / "shop" / "orders.py"
    line = "    yield from pure(order.id).compensate(refund)\n"
    assert line in orders.read_text()
    orders.write_text(orders.read_text().replace(line, ""))
    done = run(copied, "./dev", "test", *PYTEST, "tests/test_worlds.py", VIRTUAL_ENV=sys.prefix)
    assert done.returncode == 1 and "test_nobody_pays_for_what_is_not_sent" in done.stdout
    assert re.search(r"charge\(.*\n(.*\n)*?.*undo: release", done.stdout), done.stdout


@LONG
def test_the_tutorial_goes_on_with_it(shop: Path, tmp_path: Path, database: str) -> None:
    """Its blocks in turn, with the service of `./dev serve` beside them."""
    copied = Path(shutil.copytree(shop, tmp_path / "shop"))
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.M | re.S)
    variables = {**os.environ, "VIRTUAL_ENV": sys.prefix, "FLOWDSL_DATABASE_URL": database}
    with subprocess.Popen(["./dev", "serve", "--port", "0"], cwd=copied, env=variables, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        address = serving.stdout.readline().removeprefix("listening on ").strip().removesuffix("/api/v1")
        try:
            said = [subprocess.run(["bash", "-c", f"set -e\n{one.replace('http://localhost:8084', address)}"], cwd=copied, env=variables,
                                   capture_output=True, text=True, timeout=60) for one in blocks]  # fmt: skip
        finally:
            serving.terminate()
            serving.wait(60)
    assert [one.returncode for one in said] == [0] * len(blocks), [one.stderr for one in said]
    assert '"outcome":"new"' in said[0].stdout and "shop.order o-1" in said[0].stdout
    assert "shop.order: 1 fits" in said[1].stdout and "sent" in said[2].stdout and '"parcel-o-1"' in said[2].stdout, said[1].stdout + said[2].stdout


@LONG
def test_checkers_accept_it_and_refuse_an_unhandled_failure(shop: Path, tmp_path: Path) -> None:
    strict = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), "--python-executable", sys.executable]
    good = run(shop, *strict, "shop", "tests")
    assert good.returncode == 0, good.stdout
    copied = Path(shutil.copytree(shop, tmp_path / "copied"))
    orders = copied / "shop" / "orders.py"
    orders.write_text(orders.read_text().replace(' | CarrierDown]:\n    """A saga', ']:\n    """A saga'))
    bad = run(copied, *strict, "shop")
    assert bad.returncode == 1 and "CarrierDown" in bad.stdout, bad.stdout


def test_another_name_is_used_throughout(tmp_path: Path) -> None:
    made = new(tmp_path, "deep/er/tea-house")
    assert made.returncode == 0 and "cd deep/er/tea-house && ./dev test" in made.stdout, made.stderr
    folder = tmp_path / "deep" / "er" / "tea-house"
    texts = {path: path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert [path for path, text in texts.items() if re.search(r"\bshop\b|\$\w*package|\$name", text)] == []
    assert 'name = "tea-house"' in texts[folder / "pyproject.toml"]
    done = run(folder, sys.executable, "-c", "from tea_house.deployment import deployment; print(*sorted(deployment.names))")
    assert done.stdout.split() == ["tea_house.order", "tea_house.report"], done.stderr
    assert stat.S_IMODE((folder / "dev").stat().st_mode) & 0o100 and stat.S_IMODE(folder.stat().st_mode) & 0o500 == 0o500


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("My Shop", "did you mean my-shop?"),
        ("9lives", "did you mean lives?"),
        ("shop!", "did you mean shop?"),
        ("-", "cannot be the name"),
        ("x" * 31, "at most 30"),
        ("class", "Python has something of that name"),
        ("json", "Python has something of that name"),
        ("tests", "Python has something of that name"),
        ("attrs", "is installed"),
        ("..", "cannot be the name"),
    ],
)
def test_a_bad_name_is_one_clear_line(tmp_path: Path, name: str, says: str) -> None:
    done = new(tmp_path, "--", name)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "mine.py").write_text("mine")
    (tmp_path / "stall").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("shop", "stall", "link", "stall/inner"):
        done = new(tmp_path, name)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert ("is there already" if "/" not in name else "cannot be made") in done.stderr
    assert [path.name for path in (tmp_path / "shop").iterdir()] == ["mine.py"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "shop", "stall"]
    (tmp_path / "kiosk").mkdir()
    assert new(tmp_path, "kiosk").returncode == 0, "an empty folder is not in the way"


def test_of_two_that_make_it_at_once_one_is_told(tmp_path: Path) -> None:
    from flowdsl.cli.edge import Refusal
    from flowdsl.cli.starter import _written

    met: list[str] = []
    meet = threading.Barrier(8)

    def make() -> None:
        meet.wait()
        try:
            _written(tmp_path / "shop", {"name": "shop", "package": "shop"})
            met.append("made")
        except Refusal as refusal:
            met.append(refusal.message)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert met.count("made") == 1 and len(met) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["shop"] and (tmp_path / "shop" / "dev").is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = new(tmp_path, "shop")
    assert done.returncode == 2 and "cannot be made: Permission denied" in done.stderr


def test_an_active_environment_that_lacks_something_is_not_used(shop: Path, tmp_path: Path) -> None:
    """It says so; then it would make one, which here it cannot."""
    made = run(tmp_path, sys.executable, "-m", "venv", "--without-pip", "bare")
    assert made.returncode == 0, made.stderr
    copied = Path(shutil.copytree(shop, tmp_path / "shop"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no network" >&2\nexit 1\n')
    (tmp_path / "bin" / "uv").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = run(copied, sys.executable, "dev", "test", VIRTUAL_ENV=str(tmp_path / "bare"), PATH=path)
    assert done.returncode == 1 and "lacks some of what pyproject.toml names" in done.stderr
    assert "no network" in done.stderr and "`uv venv` failed: mend the cause above" in done.stderr and "Traceback" not in done.stderr


def test_the_usage_of_its_script(shop: Path) -> None:
    assert "usage: ./dev COMMAND" in run(shop, "./dev").stdout
    wrong = run(shop, "./dev", "tset")
    assert wrong.returncode == 2 and "no command 'tset'" in wrong.stderr


@LONG
@pytest.mark.shows("S1.132")
@pytest.mark.timeout(400)
def test_the_same_with_only_the_wheel(tmp_path: Path, database: str) -> None:
    """The wheel in an environment of its own, and the project's in another one: nothing of ours is on the path by accident."""
    if shutil.which("uv") is None:
        pytest.skip("uv is not on PATH")
    built = run(ROOT, "uv", "build", "--quiet", "--wheel", "--out-dir", str(tmp_path), str(ROOT))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert run(tmp_path, "uv", "venv", "--quiet", "--python", sys.executable, "env").returncode == 0
    python = str(tmp_path / "env" / "bin" / "python")
    installed = run(tmp_path, "uv", "pip", "install", "--quiet", "--python", python, f"flowdsl @ {wheel.as_uri()}")
    if re.search(r"error sending request|[Ff]ailed to fetch|network|dns error", installed.stderr):
        pytest.skip(f"packages cannot be had here: {installed.stderr.strip()}")
    made = run(tmp_path, python, "-m", "flowdsl", "new", "shop")
    assert made.returncode == 0, made.stderr
    told = run(tmp_path / "shop", python, "-m", "flowdsl", "dev", "shop.deployment:deployment", FLOWDSL_DATABASE_URL=database)
    assert told.returncode == 2 and "pip install 'flowdsl[service]'" in told.stderr, told.stderr
    tests = run(tmp_path / "shop", "./dev", "test", "--hypothesis-profile=ci")
    assert tests.returncode == 0 and "9 passed" in tests.stdout and "making .venv with uv" in tests.stderr, tests.stdout + tests.stderr
    demo = run(tmp_path / "shop", "./dev", "demo", FLOWDSL_DATABASE_URL=database)
    assert demo.returncode == 0 and "making" not in demo.stderr, demo.stdout + demo.stderr
