"""What a worker knows of the store's time, from its last heartbeat and a clock that may be coarse."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowdsl.postgres.heart import Heart, Reading

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
spans = st.floats(0, 30, allow_nan=False)


def coarse(moment: float, grain: float) -> float:
    return math.floor(moment / grain) * grain if grain else moment


@pytest.mark.parametrize("grain", [0.0, 0.001])
@given(spans, spans, spans, spans)
def test_its_bounds_hold_on_every_clock(grain: float, before: float, there: float, back: float, since: float) -> None:
    """Sent, stamped, heard, and now: the store's true time lies between the two bounds, also when both clocks drop fractions of a millisecond."""
    one = Heart("", "", 10.0)
    sent, stamped, heard = before, before + there, before + there + back
    now = heard + since
    true = BEGAN + timedelta(seconds=now)
    one._reading = Reading(BEGAN + timedelta(seconds=stamped), coarse(sent, grain), coarse(heard, grain))
    one._clock = lambda: coarse(now, grain)
    rounding = timedelta(microseconds=2)
    for _ in range(2):  # the second answer is remembered
        assert one.lower() <= true + rounding and one.upper() >= true - rounding
        assert not one.fit or now - sent <= 10.0 + 1e-6
