"""Who a token lets in, and what becomes of files that are wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from foldserve.serving.errors import CredentialsError, PermissionDeniedError, UnauthenticatedError
from foldserve.serving.protocol.names import INFERENCE_SERVICE
from foldserve.serving.security import tokens as tokens_module
from foldserve.serving.security.permissions import Permissions
from foldserve.serving.security.tokens import Caller, Tokens, create_token, to_line

if TYPE_CHECKING:
    from pathlib import Path

INFER, LOAD = f"/{INFERENCE_SERVICE}/ModelInfer", f"/{INFERENCE_SERVICE}/RepositoryModelLoad"
CI, OPS = Caller("ci", "infer"), Caller("ops", "admin")


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "_CHECK_EVERY_S", 0.0)


def write(path: Path, *entries: tuple[Caller, str], start: str = "# callers\n\n") -> Path:
    path.write_text(start + "".join(to_line(caller, token) + "\n" for caller, token in entries))
    return path


def test_each_token_identifies_its_caller(tmp_path: Path) -> None:
    first, second = create_token(), create_token()
    tokens = Tokens(write(tmp_path / "tokens", (CI, first), (OPS, second)))
    for _ in range(2):  # the second time out of what is known already
        assert tokens.find(first) == CI
        assert tokens.find(second) == OPS
    for wrong in ("", first[:-1], first + "x", create_token(), "é", "\udcff"):
        assert tokens.find(wrong) is None
    assert first not in (tmp_path / "tokens").read_text(), "a token is stored nowhere"


def test_wrong_tokens_are_not_remembered(tmp_path: Path) -> None:
    """The cache holds tokens of the file only, whatever callers send."""
    token = create_token()
    tokens = Tokens(write(tmp_path / "tokens", (CI, token)))
    for index in range(1000):
        tokens.find(f"guess {index}")
    tokens.find(token)
    assert list(tokens._known) == [token]


def test_revoked_tokens_are_refused_and_new_ones_accepted(tmp_path: Path) -> None:
    old, new = create_token(), create_token()
    tokens = Tokens(write(tmp_path / "tokens", (CI, old)))
    assert tokens.find(old) == CI
    write(tmp_path / "tokens", (OPS, new), start="# rotated\n")
    assert tokens.find(old) is None
    assert tokens.find(new) == OPS


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_text("infer ci"), id="bad line"),
        pytest.param(lambda path: path.write_bytes(b"\xff\xfe"), id="no text"),
        pytest.param(lambda path: path.unlink(), id="gone"),
    ],
)
def test_invalid_token_file_leaves_the_old_tokens_in_force(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    token = create_token()
    tokens = Tokens(write(tmp_path / "tokens", (CI, token)))
    damage(tmp_path / "tokens")  # type: ignore[operator]
    for _ in range(3):
        assert tokens.find(token) == CI
    assert len(caplog.records) == 1
    assert "the tokens stay as they were" in caplog.text
    assert token not in caplog.text


def test_emptied_token_file_admits_nobody(tmp_path: Path) -> None:
    token = create_token()
    tokens = Tokens(write(tmp_path / "tokens", (CI, token)))
    (tmp_path / "tokens").write_text("# nobody\n")
    assert tokens.find(token) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param("", "has no tokens", id="empty"),
        pytest.param("infer ci", "line 1 has 2 words; expected ROLE NAME sha256:HEX", id="two words"),
        pytest.param("# x\nroot ci sha256:" + "0" * 64, "line 2: the role is neither", id="role"),
        pytest.param("infer ci " + "0" * 64, "is not 'sha256:' and 64 hexadecimal", id="no algorithm"),
        pytest.param("infer ci sha256:" + "0" * 63, "64 hexadecimal", id="short hash"),
        pytest.param("infer a/b sha256:" + "0" * 64, "the name is 'a/b'", id="name"),
        pytest.param(f"infer a sha256:{'0' * 64}\nadmin b sha256:{'0' * 64}", "earlier line", id="twice"),
    ],
)
def test_invalid_token_file_is_explained(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(CredentialsError, match=reason):
        Tokens(tmp_path / "tokens")


def test_line_with_a_token_is_not_shown(tmp_path: Path) -> None:
    token = create_token()
    (tmp_path / "tokens").write_text(f"infer ci {token}\n")
    with pytest.raises(CredentialsError, match="line 1") as caught:
        Tokens(tmp_path / "tokens")
    assert token not in str(caught.value)


def test_only_admin_tokens_load_and_unload_models(tmp_path: Path) -> None:
    infer, admin = create_token(), create_token()
    permissions = Permissions(Tokens(write(tmp_path / "tokens", (CI, infer), (OPS, admin))))

    def check(path: str, value: str | bytes, key: str = "authorization") -> Caller | None:
        return permissions.check(path, (("user-agent", "test"), (key, value)))

    assert check(INFER, f"Bearer {infer}") == CI
    assert check(INFER, f"bearer  {admin} ") == check(LOAD, f"BEARER {admin}") == OPS
    with pytest.raises(PermissionDeniedError, match="RepositoryModelLoad needs a token of role 'admin'"):
        check(LOAD, f"Bearer {infer}")
    for value in (f"Bearer {infer}x", "Bearer ", "Bearer"):
        with pytest.raises(UnauthenticatedError):
            check(INFER, value)
    for key, value in (("authorization", f"Basic {infer}"), ("authentication", f"Bearer {infer}")):
        with pytest.raises(UnauthenticatedError, match="carries no token"):
            check(INFER, value, key)


def test_no_token_is_needed_without_a_token_file() -> None:
    permissions = Permissions(None)
    assert not permissions.are_checked
    assert permissions.check(LOAD, ()) is None
