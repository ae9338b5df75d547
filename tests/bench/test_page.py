"""From figures to verdicts, tables and the page; and what is said of those who are not there."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from attrs import evolve

from flowdsl.cli import bench as command
from flowdsl.cli import main
from tests.bench import measured, page
from tests.bench.__main__ import arguments as read
from tests.bench.__main__ import main as run
from tests.bench.aims import verdicts
from tests.bench.found import Found, Results
from tests.bench.measured import FEWEST, Figures, Span
from tests.bench.peers import PARTIES, ROOT, Party, Silent, program
from tests.bench.profiled import LOOP, ORDER, OTHER, Sampler, part_of
from tests.bench.race import Race
from tests.bench.sheets import results, sheets_of
from tests.bench.workloads import WORKLOADS


def facts(*found: Found, **more: Any) -> dict[str, Any]:
    return {
        "flowdsl": "0", "at": "2026-01-01T00:00:00+00:00", "form": "usual", "rounds": 2, "window_s": 1.0, "flush_ms": 0.0, "loop": "asyncio",
        "machine": {"cores": 2, "system": "Linux", "python": "3.11", "load": 0.5}, "settings": {"fsync": "on"}, "took_s": 60.0,
        "versions": {"DBOS": "3.4.0", "group commit": "0.32"}, "absent": {}, "fell_out": {}, "found": [one.plain() for one in found], **more,
    }  # fmt: skip


def figure(who: str, round: int, per_s: int, size: int = 256, workload: str = "seq", **more: Any) -> Found:
    return Found(workload, size, who, round, per_s, 1.0, **more)


def verdict(all: dict[str, Any], name: str) -> Any:
    return next(one for one in verdicts(all) if one.aim.name == name)


def test_a_ratio_is_the_median_of_the_rounds_that_both_were_in() -> None:
    found = Results([figure("ours", 0, 100), figure("ours", 1, 300), figure("ours", 2, 900), figure("dbos", 0, 10), figure("dbos", 1, 10)])
    assert found.ratios("seq", 256, "dbos") == [10.0, 30.0]
    assert found.ratio("seq", 256, "dbos") == (20.0, 256)
    assert found.ratio("seq", 256, "absurd") is None


def test_who_was_measured_at_a_smaller_size_is_compared_by_rate_and_it_is_said() -> None:
    some = [figure("ours", 0, 5000, 10_000, "wake"), figure("ours", 0, 9999, 1000, "wake"), figure("dbos", 0, 50, 1000, "wake")]
    told = verdict(facts(*some), "10,000 woken: against DBOS")
    assert told.found == 100.0 and told.met and told.remark == "theirs measured at 1,000"
    told = verdict(facts(figure("ours", 0, 60, 2000, "people"), figure("client", 0, 100, 2000, "people")), "a sync of 50,000 people: share of "
                   "a client without a journal")  # fmt: skip
    assert told.found == 0.6 and told.met is False and told.remark.startswith("both measured at 2,000")


@pytest.mark.parametrize(("ours", "met"), [(100, True), (99, False)])
def test_an_aim_is_met_or_missed_by_what_was_measured(ours: int, met: bool) -> None:
    all = facts(figure("ours", 0, ours, client_us=9000.0), figure("dbos", 0, 2))
    told = verdict(all, "256 in flight: against DBOS")
    assert told.met is met
    assert ("✓" if met else "✗") in told.row()
    assert met or "our CPU, 9,000 of 10,101 µs a step; wanted are 10,000" in told.remark  # 99 a second


def test_what_is_slow_for_waiting_is_not_blamed_on_the_cpu() -> None:
    told = verdict(
        facts(figure("ours", 0, 100, 1, client_us=1000.0, server_us=500.0), figure("bare", 0, 1000, 1)), "1 in flight: share of group commit"
    )
    assert told.found == 0.1 and "8,500 flush and waiting" in told.remark


def test_one_after_another_is_told_beside_a_bare_commit_and_what_is_wanted() -> None:
    ours = figure("ours", 0, 2000, 1, client_us=200.0, server_us=180.0)
    limit = figure("bare", 0, 4000, 1, client_us=70.0, server_us=110.0)
    told = verdict(facts(ours, limit, figure("dbos", 0, 400, 1)), "1 in flight: against DBOS")
    assert "500 µs a step: 200 our CPU, 180 the server's, 120 flush and waiting; a bare commit: 250 (70.0, 110, 70.0)" in told.remark
    assert "Wanted are 250: only who commits less often than each step gets there" in told.remark  # a tenth of DBOS's 2,500
    told = verdict(facts(ours, limit), "1 in flight: share of group commit")
    assert told.remark.endswith("Wanted are 417: 83.3 too many")


def test_memory_is_a_line_through_two_sizes() -> None:
    def waits(size: int, above: float) -> Found:
        return figure("ours", 0, 1, size, "wake", more={"idle_mb": 60.0, "suspended_mb": 60.0 + above})

    told = verdict(facts(waits(10_000, 10.0), waits(100_000, 28.0)), "worker memory above idle, 100,000 suspended")
    assert told.met is False and told.remark == "bound: 8.00 MB however many wait, then 210 bytes for each"
    assert verdict(facts(waits(100_000, 28.0)), told.aim.name).remark == ""  # no line through one point


def test_a_missed_cost_says_what_it_is_made_of() -> None:
    profile = {
        "256": {"client_us": 1.0, "parts": {"codec": 1.0}, "wal": {"journal": 260.0, "index journal_pkey": 90.5, "executions": 50.0, "commits": 1.0}}
    }
    laps = {"python_s": 0.02, "imports_s": 0.3, "schema_s": 0.02, "first_s": 0.1}
    cold = Found("cold", 1, "ours", 0, 1, 0.5, more=laps)
    all = facts(
        figure("ours", 0, 1, wal_bytes=470.0), figure("bare", 0, 1, wal_bytes=346.0), cold, profile=profile, imports_ms={"rich": 30, "us": 90}
    )
    told = verdict(all, "WAL of a step, 256 in flight")
    assert told.remark == "bound: journal 260, index journal_pkey 90.5, executions 50.0 bytes; a bare row of this width takes 346"
    told = verdict(all, "cold start")
    assert told.remark.startswith("bound: Python 0.02 s, imports 0.30 s, ") and told.remark.endswith("Of importing, ms: us 90, rich 30")


def test_costs_have_upper_bounds() -> None:
    all = facts(
        figure("ours", 0, 1, wal_bytes=450.0, client_us=61.0), profile={"256": {"client_us": 61.0, "parts": {"codec": 40.0, "machine": 21.0}}}
    )
    assert verdict(all, "WAL of a step, 256 in flight").met is True
    told = verdict(all, "client CPU of a step, 256 in flight")
    assert told.met is False and told.remark == "bound: codec 40.0, machine 21.0 µs"
    assert verdict(all, "worker memory above idle, 100,000 suspended").met is None


def test_a_table_shows_median_spread_and_ratio() -> None:
    all = facts(figure("ours", 0, 100), figure("ours", 1, 300), figure("dbos", 0, 10), figure("dbos", 1, 10), figure("dbos", 2, 40))
    (speeds,) = sheets_of(all, "seq")
    assert speeds.columns == ["", "flowdsl", "DBOS"]
    assert speeds.rows == [["256", "200 (100–300)", "10.0 (10.0–40.0) · 20.0×"]]
    assert sheets_of(all, "children") == []


def test_the_page_is_made_from_the_document_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    resumed = [{"shape": shape, "length": n, "rows": n, "load_ms": 1.0, "fold_ms": 1.0 * n, "bare_ms": 1.0, "worker_ms": 9.0, "ratio": 2.0}
               for shape in ("steps", "rounds") for n in (1000, 10_000, 100_000)]  # fmt: skip
    profile = {"256": {"client_us": 10.0, "server_us": 5.0, "wall_us": 810.0, "flush_us": 777.5, "flushes": 0.25, "wal": {"journal": 262.5},
                       "samples": 9, "parts": {part: 1.0 for part in ORDER}}}  # fmt: skip
    all = facts(
        figure("ours", 0, 1234), figure("bare", 0, 9999), figure("dbos", 0, 2), resume=resumed, profile=profile,
        absent={"restate": "Restate is left out: no `restate-server` on PATH"}, fell_out={"wake dbos": "DBOS: it fell over"},
    )  # fmt: skip
    for place in ("one.md", "two.md"):
        page.write(json.loads(json.dumps(all)), tmp_path / place)
    text = (tmp_path / "one.md").read_text()
    for wanted in (
        "1,234",
        "617×",
        "| ✓ |",
        "`fsync` on",
        "DBOS 3.4.0",
        "Restate is left out: no `restate-server` on PATH",
        "wake dbos: DBOS: it fell over",
        "## Where an aim is missed",
        "| flush | 778 | – |",
        "| journal | 262 |",
    ):
        assert wanted in text, wanted
    plots = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert plots == ["profile.svg", "resume.svg", "seq.svg", "times.svg"]
    for name in plots:
        assert f"](one/{name})" in text
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()  # the same figures, the same files
    assert ">DBOS</text>" in (tmp_path / "one" / "seq.svg").read_text()  # text stays text


def test_a_document_that_is_none_makes_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "figures.json").write_text('{"found": []}')
    assert run(["--page", str(tmp_path / "figures.json"), "--out", str(tmp_path / "page.md")]) == 1
    assert "no page from" in capsys.readouterr().err and not (tmp_path / "page.md").exists()


def test_the_page_that_is_here_is_one_that_was_made() -> None:
    assert page.PAGE.read_text("utf-8").startswith("# Performance\n\nMade by `flowdsl bench --page`")


# Who is not there


def bench(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=250)


def test_a_whole_run_says_who_is_missing_and_keeps_every_figure(server: str, tmp_path: Path) -> None:
    document = tmp_path / "figures.json"
    gone = [name for name in ("temporal", "restate") if PARTIES[name].missing()]  # who measures with them has them
    done = bench(
        "seq", "inside", "--sizes", "2", "--rounds", "2", "--seconds", "0.05", "--peers", ",".join(gone) or "none", "--quick", "--database", server,
        "--json", str(document),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for told in (*(f"{PARTIES[name].title} is left out: " for name in gone), "DBOS is left out, as asked"):
        assert told in done.stdout
    assert "not durable" in done.stdout  # the server of the tests is a fast one
    all = json.loads(document.read_text())
    assert set(all["absent"]) == {"dbos", "absurd", "absurd8", "temporal", "restate"}
    assert [(one.who, one.round) for one in results(all).all] == [(who, n) for n in (0, 1) for who in ("ours", "bare", "ends", "single")]
    assert all["settings"]["fsync"] == "off" and all["inside_us"]


async def test_a_run_that_is_cut_short_keeps_its_figures_and_leaves_nothing_behind(server: str, tmp_path: Path) -> None:
    document = tmp_path / "figures.json"
    arguments = ["seq", "--sizes", "1", "--rounds", "1000", "--seconds", "0.05", "--peers", "none", "--database", server, "--json", str(document)]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.bench", *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(250):
        while b"round 2 of 1000" not in (line := await process.stdout.readline()):
            assert line, "it has ended by itself"
        process.terminate()
        await process.communicate()
    assert process.returncode == 143
    assert len(json.loads(document.read_text())["found"]) >= 8
    connection = await asyncpg.connect(server)
    assert await connection.fetchval(f"select count(*) from pg_database where datname like 'flowdsl_bench_%\\_{process.pid}'") == 0
    await connection.close()


def test_a_peer_that_is_not_installed_says_how_to_get_it() -> None:
    gone = Party("x", "Peer X", "x", needs=("no_such_module",), brought_by="peers")
    assert gone.missing() == 'Peer X is left out: pip install "flowdsl[peers]"'
    assert evolve(gone, server="sh").missing() == gone.missing()
    assert evolve(gone, server="no-such-program").missing() == gone.missing()  # the extra brings both
    other = evolve(gone, server="no-such-program", server_brought_by="npm install it")
    assert other.missing() == 'Peer X is left out: pip install "flowdsl[peers]", and npm install it'
    assert evolve(other, needs=("json",)).missing() == "Peer X is left out: npm install it"
    assert Party("y", "Peer Y", "y", needs=("json",), server="sh").missing() is None


def test_a_server_is_found_beside_this_python_and_where_npm_puts_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert program("restate-server") is None
    for place in ("node_modules/@restatedev/restate-server-linux-x64/bin/restate-server", "bin/temporal"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text("#!/bin/sh\n")
        (tmp_path / place).chmod(0o755)
    assert program("temporal") == str(tmp_path / "bin" / "temporal")
    assert program("restate-server") == str(tmp_path / "node_modules/@restatedev/restate-server-linux-x64/bin/restate-server")


async def test_a_window_is_longer_for_who_works_in_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "LONGEST", 10_000)  # for as long as the machine may stand still
    looks: list[int] = []

    def count() -> int:
        looks.append(len(looks) * (FEWEST // 2 + 1))
        return looks[-1]

    sample = await Span(count).window("x", 0, 0.2)
    assert len(looks) == 5  # whether all are there, the beginning, two looks until there are enough steps, the end
    assert sample.steps_per_s > 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nope"], "no such workload: nope (there are seq,"),
        (["--peers", "camunda"], "no such peer: camunda"),
        (["--flush-ms", "1", "--database", "postgresql:///x"], "leave out --database"),
        (["--flush-ms", "200"], "100 ms at most"),
        (["--quick", "--long"], "give one"),
        (["--sizes", "a"], "no list of numbers"),
        (["--rounds", "0"], "--rounds"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read(arguments)
    assert ended.value.code == 2 and told in capsys.readouterr().err


def test_the_command_line_finds_the_measurements_or_says_where_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from click.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    done = subprocess.run([sys.executable, "-m", "flowdsl", "bench", "--help"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and "usage: flowdsl bench" in done.stdout and "slow-disk" in done.stdout
    monkeypatch.setattr(command, "_checkout", lambda: None)
    told = CliRunner().invoke(main, ["bench"])
    assert told.exit_code == 2 and "a checkout of flowdsl's repository" in told.output


# The rounds, and the samples


class Stand:
    """Takes the field's place and writes down who was asked. Its clock moves for who is slow, and for nobody else."""

    def __init__(self, slow: str = "", broken: str = "") -> None:
        self.asked: list[str] = []
        self.clock = 0.0
        self.versions: dict[str, str] = {}
        self._slow, self._broken = slow, broken

    async def measured(self, name: str, do: str, size: int, seconds: float) -> Any:
        self.asked.append(name)
        if name == self._broken:
            raise Silent(f"{PARTIES[name].title}: it fell over")
        if name == self._slow:
            self.clock += 0.5
        return Figures(10, 1.0)

    def monotonic(self) -> float:
        return self.clock


async def race(stand: Stand, patience: float, monkeypatch: pytest.MonkeyPatch) -> Race:
    monkeypatch.setattr("tests.bench.race.time", stand)
    found = Race("", stand, 3, 1.0, lambda _: None)  # type: ignore[arg-type]
    await found.run(evolve(WORKLOADS["fanout"], patience=patience), [1000], ["temporal", "restate"], 0.0)
    return found


async def test_rounds_are_interleaved_and_who_falls_out_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(broken="dbos")
    found = await race(stand, 100, monkeypatch)
    assert stand.asked == ["ours", "bare", "dbos", "absurd"] + ["ours", "bare", "absurd"] * 2
    assert found.facts()["fell_out"] == {"fanout dbos": "DBOS: it fell over"}


async def test_who_has_used_up_the_patience_sits_out_the_other_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(slow="dbos")
    await race(stand, 0.4, monkeypatch)
    assert stand.asked.count("dbos") == 1 and stand.asked.count("absurd") == 3


def test_files_belong_to_parts() -> None:
    at = "/somewhere/site-packages"
    assert part_of(f"{at}/flowdsl/machine.py") == "machine"
    assert part_of(f"{at}/flowdsl/codec/build.py") == part_of("/usr/lib/python3.11/json/encoder.py") == "codec"
    assert part_of(f"{at}/flowdsl/postgres/committer.py") == "committer"
    assert part_of(f"{at}/flowdsl/postgres/worker.py") == part_of(f"{at}/flowdsl/replay.py") == "worker"
    assert part_of(f"{at}/asyncpg/pool.py") == "driver"
    assert part_of("/usr/lib/python3.11/asyncio/tasks.py") == LOOP
    assert part_of("<attrs generated init flowdsl.flow.Perform>") == "machine"
    assert part_of("/usr/lib/python3.11/functools.py") is None
    assert part_of("/home/you/flowdsl/tests/bench/ours.py") == "the workflow, its activity, the measurement"


def test_samples_are_charged_to_what_was_running() -> None:
    from flowdsl.codec import codec

    encode, sampler = codec(dict[str, list[int]]).encode, Sampler()
    value = {str(n): list(range(20)) for n in range(200)}
    with sampler.running():
        for _ in range(20_000):
            encode(value)
            if sampler.parts.total() >= 20:
                break
    assert sampler.parts["codec"] >= 15 and sampler.parts[OTHER] == 0
