"""tests/postgres/test_commit.py over the model."""

from tests.postgres.test_commit import *  # noqa: F403
