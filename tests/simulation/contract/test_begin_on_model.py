"""tests/postgres/test_begin.py over the model."""

from tests.postgres.test_begin import *  # noqa: F403
