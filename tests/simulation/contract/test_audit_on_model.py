"""tests/postgres/test_audit.py over the model."""

from tests.postgres.test_audit import *  # noqa: F403
