"""What the settings of the server decide by themselves."""

import pytest

from serving.config import ServeConfig


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_models_are_controlled_from_this_machine_by_default(host: str) -> None:
    assert ServeConfig(host=host).allows_model_control
    assert not ServeConfig(host=host, model_control=False).allows_model_control


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.5", "2001:db8::1", "gpu-server", "127.0.0.1.example"]
)
def test_strangers_may_not_control_models_unless_told(host: str) -> None:
    assert not ServeConfig(host=host).allows_model_control
    assert ServeConfig(host=host, model_control=True).allows_model_control
