"""tests/postgres/test_schedules.py over the model."""

from tests.postgres.test_schedules import *  # noqa: F403
