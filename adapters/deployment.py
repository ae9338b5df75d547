"""The composition root: every system that runs here, one line each. How a system says what it brings: `adapters.part`.

Importing it opens nothing, and reads the environment: who is synced by the clock, whose webhooks are believed.
"""

from __future__ import annotations

import os

from adapters.fullenrich.part import part as fullenrich
from adapters.imports.part import part as imports
from adapters.part import composed
from adapters.planning_center.part import part as planning_center

deployment = composed(
    planning_center(os.environ),
    fullenrich(os.environ),
    imports(os.environ),
)
