"""tests/postgres/test_meetings.py over the model."""

from tests.postgres.test_meetings import *  # noqa: F403
