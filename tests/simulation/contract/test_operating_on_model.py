"""tests/postgres/test_operating.py over the model."""

from tests.postgres.test_operating import *  # noqa: F403
