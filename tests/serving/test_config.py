"""Defaults that the server's settings derive, and combinations that they refuse."""

import pytest
from pydantic import ValidationError

from foldserve.runtime.model_settings import ModelSettings, SharedSettings
from foldserve.serving.commands.command_configs import ClassifyConfig
from foldserve.serving.config import ServeConfig


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_local_callers_may_control_models_by_default(host: str) -> None:
    assert ServeConfig(host=host).allows_model_control
    assert not ServeConfig(host=host, model_control=False).allows_model_control


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.5", "2001:db8::1", "gpu-server", "127.0.0.1.example"]
)
def test_remote_callers_may_not_control_models_by_default(host: str) -> None:
    assert not ServeConfig(host=host).allows_model_control
    assert ServeConfig(host=host, model_control=True).allows_model_control


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_local_callers_are_trusted(host: str) -> None:
    assert ServeConfig(host=host).why_not_native is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "2001:db8::1", "gpu-server"])
@pytest.mark.parametrize("more", [{}, {"tokens": "a", "allow_plaintext_tokens": True}])
def test_remote_callers_are_not_trusted_by_default(host: str, more: dict[str, object]) -> None:
    """Tokens do not change that: anyone who reaches the port can crash a native server without one."""
    reason = ServeConfig(host=host, **more).why_not_native
    assert reason is not None
    assert f"whoever reaches {host} could end it" in reason
    assert "--trust-callers" in reason
    assert ServeConfig(host=host, trust_callers=True, **more).why_not_native is None


def test_flags_that_native_lacks_select_grpcio_despite_trust() -> None:
    reason = ServeConfig(trust_callers=True, max_connections=5).why_not_native
    assert reason == "native, which is several times faster, cannot do --max-connections"


def test_tokens_enable_model_control_unless_the_flag_disables_it() -> None:
    tls = {"tls_cert": "server.pem", "tls_key": "server.key"}
    assert ServeConfig(host="0.0.0.0", tokens="tokens", **tls).allows_model_control
    assert not ServeConfig(host="0.0.0.0", tokens="tokens", model_control=False, **tls).allows_model_control


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"tls_cert": "a"}, "--tls-cert needs --tls-key", id="certificate alone"),
        pytest.param({"tls_key": "a"}, "--tls-key needs --tls-cert", id="key alone"),
        pytest.param({"tls_client_ca": "a"}, "--tls-client-ca needs TLS", id="client authorities alone"),
        pytest.param(
            {"host": "0.0.0.0", "tokens": "a"}, "in the clear.*--allow-plaintext-tokens", id="tokens open"
        ),
        pytest.param(
            {"transport": "native", "tls_cert": "a", "tls_key": "a", "max_connections": 5},
            "native cannot do --tls-cert and --max-connections; use --transport grpcio",
            id="native with TLS",
        ),
        pytest.param(
            {"transport": "native", "max_connection_age_s": 5}, "--max-connection-age-s", id="native with age"
        ),
        pytest.param(
            {"transport": "native", "max_connection_idle_s": 5}, "--max-connection-idle-s", id="native, idle"
        ),
    ],
)
def test_conflicting_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ServeConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"tokens": "a"}, id="on loopback"),
        pytest.param({"host": "0.0.0.0", "tokens": "a", "tls_cert": "a", "tls_key": "a"}, id="with TLS"),
        pytest.param({"host": "0.0.0.0", "tokens": "a", "allow_plaintext_tokens": True}, id="as told"),
        pytest.param({"transport": "native", "tokens": "a"}, id="native"),
    ],
)
def test_tokens_are_accepted(settings: dict[str, object]) -> None:
    assert ServeConfig(**settings).tokens is not None


def test_token_of_a_command_is_hidden() -> None:
    """In the repr, which error messages contain, and in the dump."""
    config = ClassifyConfig(images=["a.png"], model="tiny").with_token("secret")
    assert config.token == "secret"
    assert "secret" not in repr(config)
    assert "secret" not in str(config.model_dump())


def test_every_shared_flag_is_the_default_of_all_models() -> None:
    given = {
        "device": "cpu",
        "max_batch_size": 8,
        "max_queue_delay_ms": 2.5,
        "batch_invariant": True,
        "instances": 2,
        "intra_op_threads": 3,
        "max_queue_rows": 40,
        "max_queue_mib": 5,
    }
    assert given.keys() - {"device"} == SharedSettings.model_fields.keys()
    assert ServeConfig(**given).model_defaults == ModelSettings(**given)
    assert ServeConfig().model_defaults == ModelSettings()
