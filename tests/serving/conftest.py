"""Fixtures of serving's unit tests."""

import pytest

from tests.serving.artifacts import TinyNetwork


@pytest.fixture(scope="session")
def network() -> TinyNetwork:
    return TinyNetwork()
