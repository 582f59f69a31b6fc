"""The template unit: systemd's own reader takes it, and the command line takes its command."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.deploy.manifests import DEPLOY, settings_of

if TYPE_CHECKING:
    from pathlib import Path

UNIT = DEPLOY / "systemd" / "foldserve@.service"


@pytest.fixture
def service() -> configparser.SectionProxy:
    unit = configparser.RawConfigParser(strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # keys as they are written
    unit.read(UNIT)
    return unit["Service"]


def test_the_command_shares_the_port_and_has_its_own_for_metrics(service: configparser.SectionProxy) -> None:
    program, *words = service["ExecStart"].replace("%i", "8101").split()
    assert program.endswith("/bin/foldserve")
    assert words.pop() == "$FOLDSERVE_FLAGS", "last, so that it wins"
    config = settings_of(words)
    assert config.reuse_port
    assert (config.port, config.metrics_port) == (8001, 8101)
    assert config.drain_delay_s + config.grace_period_s < float(service["TimeoutStopSec"])


def test_flags_of_ones_own_win() -> None:
    assert settings_of(["serve", "--port", "8001", "--port", "9001"]).port == 9001


def test_systemd_reads_it(tmp_path: Path) -> None:
    """Every key and value; only the program and the user are others, since these are not on this machine."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze on the path")
    text = re.sub(r"/opt/foldserve/bin/foldserve", "/bin/true", UNIT.read_text())
    text = re.sub(r"(User|Group)=foldserve", r"\1=root", text)
    (tmp_path / UNIT.name).write_text(text)
    instance = tmp_path / "foldserve@8101.service"
    instance.symlink_to(UNIT.name)
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(instance)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    about_it = [line for line in done.stderr.splitlines() if "foldserve@" in line]
    assert (done.returncode, about_it) == (0, [])


def test_systemd_s_reader_finds_a_key_that_there_is_not(tmp_path: Path) -> None:
    """The check itself."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze on the path")
    (tmp_path / "wrong.service").write_text("[Service]\nExecStart=/bin/true\nProtectSytem=strict\n")
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "wrong.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "ProtectSytem" in done.stderr
