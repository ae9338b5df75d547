"""Golden journals: each is folded by today's code, and gives the exit that it has, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from flowdsl.cli import main
from flowdsl.journal import KINDS
from flowdsl.testing.golden import BadJournal, compared, golden, read, written
from tests.testing.goldens import FOLDER, definitions, made

FILES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_folds_to_its_exit(file: Path) -> None:
    for one in read(file.read_text(), str(file)):
        verdict = compared(one, definitions)
        assert verdict.verdict == "fits", "\n".join([verdict.why, *verdict.lines])
        assert golden(one) == file.read_text(), "the format has changed: give it another number"


def test_they_hold_each_kind_of_instruction_and_entry() -> None:
    entries = [entry for file in FILES for one in read(file.read_text()) for entry in one.journal]
    asked = {entry.fingerprint.split(" ")[0] for entry in entries}
    assert asked >= {"perform", "sleep", "receive", "take", "send", "start", "join", "audit", "changed", "iterate", "cancel", "existing"}, asked
    kinds = {KINDS[entry.kind] for entry in entries}
    assert kinds >= {"success", "failure", "failed attempt", "cancel", "checkpoint", "interrupted"}, kinds


def test_another_exit_is_found(tmp_path: Path) -> None:
    for name, one in made():
        if name == "orders":
            text = golden(one)
            assert one.exit is not None and compared(one, definitions).verdict == "fits"
            changed = read(text.replace('"a-1 in 3"', '"a-1 in 4"'))[0]
            assert changed != one
            assert compared(changed, definitions).verdict == "breaks"
            return
    raise AssertionError("there is no such journal")


def test_what_is_there_is_never_edited(tmp_path: Path) -> None:
    _, one = next(iter(made()))
    (file,) = written(tmp_path, [one])
    assert written(tmp_path, [one]) == [file]
    file.write_text(file.read_text().replace("success", "failure"))
    with pytest.raises(BadJournal, match="never edited"):
        written(tmp_path, [one])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"flowdsl journal": 99}', '{"flowdsl journal": 1, "journal": 3}'])
def test_what_is_no_journal_is_refused(text: str) -> None:
    with pytest.raises(BadJournal):
        read(text, "x.json")


def test_the_command_tells_what_fits_and_what_breaks(tmp_path: Path) -> None:
    written(tmp_path, [one for name, one in made() if name == "orders"])
    command = ["compat", "tests.testing.goldens", "--journals", str(tmp_path)]
    done = CliRunner().invoke(main, command)
    assert (done.exit_code, "1 fits" in done.output) == (0, True), done.output
    file = next(tmp_path.glob("*.json"))
    file.write_text(file.read_text().replace("perform golden.charge", "perform golden.pay"))
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1 and "breaks" in done.output and "golden.pay" in done.output, done.output
    facts = json.loads(file.read_text())
    facts["flowdsl journal"] = 99
    file.write_text(json.dumps(facts))
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2 and "format 99" in done.output, done.output
