"""tests/postgres/test_claims.py over the model."""

from tests.postgres.test_claims import *  # noqa: F403
