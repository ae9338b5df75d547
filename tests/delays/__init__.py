"""`pytest --delays SEED[:SHARE[:SECONDS]]`: statements are late at random, in tests and in the processes that they start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.delays.sitecustomize import VARIABLE, slow, spec

_FOLDER = str(Path(__file__).parent)


def addoption(parser: pytest.Parser) -> None:
    parser.addoption("--delays", metavar="SEED[:SHARE[:SECONDS]]", help="delay that share of statements by up to so many seconds: 7 or 7:0.1:0.2")


def configure(config: pytest.Config) -> None:
    asked = config.getoption("--delays", default=None)
    if asked is None:
        return
    try:
        spec(asked)
    except ValueError:
        raise pytest.UsageError(f"--delays {asked}: must be a seed, a share from 0 to 1 and seconds up to 60, like 7:0.1:0.2") from None
    os.environ[VARIABLE] = asked
    os.environ["PYTHONPATH"] = os.pathsep.join([_FOLDER, *filter(None, [os.environ.get("PYTHONPATH")])])
    slow(asked)
