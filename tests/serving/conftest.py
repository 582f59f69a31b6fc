"""Fixtures of serving's unit tests."""

import pytest

from tests.support.artifacts import TinyNetwork


@pytest.fixture(scope="session")
def network() -> TinyNetwork:
    return TinyNetwork()
