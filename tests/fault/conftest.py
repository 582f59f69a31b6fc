"""Every fault over both transports."""

import pytest


@pytest.fixture(scope="module", params=["grpcio", "native"])
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
