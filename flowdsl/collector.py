"""Python's cyclic collector in a process that is there to run workflows."""

from __future__ import annotations

import gc

_CALM = (100_000, 20, 50)


def calm() -> None:
    """Leaves alone what is there now, and looks less often at what comes: many executions in flight are many objects that are no garbage.

    Cyclic garbage is kept a little longer for it. Meant for programs of their own, called once at their start; a library must not.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_CALM)


def sweep() -> None:
    """For now and then, in a process that is calm: a few objects that hold much must not wait until they are many."""
    if gc.get_threshold() == _CALM:
        gc.collect(0)
