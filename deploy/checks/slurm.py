"""Trains on a Slurm of its own, kills the job twice on its way, and compares the weights: `make check-slurm`.

Starts slurmctld and slurmd in a temporary folder, on free ports of this machine, without installing anything:
if they are not on the path, Debian's packages are fetched and unpacked there. One node with two tasks:
several machines, GPUs, cgroups and munge are not tried (AuthType is auth/none).
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.gpu.pictures import write_pictures
from deploy.checks.errors import CheckError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "slurm" / "train.sbatch"
DEBIAN = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "libmunge2", "libhwloc15")
PLUGINS = "usr/lib/x86_64-linux-gnu/slurm-wlm"
WAIT_S = 600.0
EPOCHS = 24
TRAINING = (
    f"--arch=lenet --epochs={EPOCHS} --batch-size=16 --deterministic --threads=1 --device=cpu --seed=3 "
    "--precision=fp32 --checkpoint-every=0.5"
).split()


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Run slurmctld and slurmd for the block; yield the environment in which their commands work."""
    unpacked = None if shutil.which("slurmctld") and shutil.which("slurmd") else _unpack_debian(folder)
    environment = dict(os.environ, SLURM_CONF=str(folder / "slurm.conf"))
    if unpacked is not None:
        libraries = (unpacked / PLUGINS, (unpacked / PLUGINS).parent)
        environment["LD_LIBRARY_PATH"] = ":".join(map(str, libraries))
        environment["PATH"] = f"{unpacked}/usr/bin:{unpacked}/usr/sbin:{environment['PATH']}"
    _write_configuration(folder, unpacked)
    with ExitStack() as stack:
        for words in (("slurmctld", "-D"), ("slurmd", "-D", *_step_daemon(unpacked))):
            stack.enter_context(_running(words, unpacked, folder, environment))
        _wait("a node that is idle", lambda: "idle" in _run(["sinfo", "-h", "-o", "%t"], environment))
        yield environment


def _unpack_debian(folder: Path) -> Path:
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise CheckError("needs slurmctld and slurmd on the path, or apt-get and dpkg to fetch Debian's")
    packages = folder / "packages"
    (packages / "lists").mkdir(parents=True)
    apt = ["apt-get", "-qq", "-o", f"Dir::State::Lists={packages}/lists", "-o", "Dir::Cache::pkgcache="]
    apt += ["-o", "Dir::Cache::srcpkgcache=", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"]
    for words in (["update"], ["download", *DEBIAN]):
        done = subprocess.run([*apt, *words], cwd=packages, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
            raise CheckError(
                f"slurmctld and slurmd are not on the path, and apt-get {words[0]} failed: {last}"
            )
    unpacked = folder / "debian"
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, unpacked], check=True)
    for name in ("slurmctld", "slurmd", "slurmstepd"):  # Debian's alternatives would name them so
        link = unpacked / "usr" / "sbin" / name
        if not link.exists():
            link.symlink_to(f"{name}-wlm")
    return unpacked


def _step_daemon(unpacked: Path | None) -> tuple[str, ...]:
    # Its place is compiled into slurmd.
    return () if unpacked is None else ("-d", str(unpacked / "usr" / "sbin" / "slurmstepd"))


def _write_configuration(folder: Path, unpacked: Path | None) -> None:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    settings = {
        "ClusterName": "check",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": _free_port(),
        "SlurmdPort": _free_port(),
        "SlurmUser": getpass.getuser(),
        "SlurmdUser": getpass.getuser(),
        "AuthType": "auth/none",
        "CredType": "cred/none",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "SlurmctldLogFile": folder / "slurmctld.log",
        "SlurmdLogFile": folder / "slurmd.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SwitchType": "switch/none",
        "MpiDefault": "none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "AccountingStorageType": "accounting_storage/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "ReturnToService": 2,
        "KillWait": 10,
        # A requeued job waits for so long otherwise: two minutes.
        "SchedulerParameters": "batch_sched_delay=0,sched_min_interval=0",
        "MinJobAge": 3600,
    }
    if unpacked is not None:
        settings["PluginDir"] = unpacked / PLUGINS
    lines = [f"{name}={value}" for name, value in settings.items()]
    # Two CPUs whatever the machine has: what is wanted is two tasks.
    lines += [f"NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN"]
    lines += [f"PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP"]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")


@contextmanager
def _running(
    words: tuple[str, ...], unpacked: Path | None, folder: Path, environment: dict[str, str]
) -> Iterator[None]:
    name, *flags = words
    program = name if unpacked is None else str(unpacked / "usr" / "sbin" / name)
    with (folder / f"{name}.out").open("wb") as output:
        process = subprocess.Popen(
            [program, *flags, "-f", environment["SLURM_CONF"]],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _run(words: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def _wait(what: str, happened: Callable[[], bool]) -> None:
    until_s = time.monotonic() + WAIT_S
    while not happened():
        if time.monotonic() > until_s:
            raise CheckError(f"waited {WAIT_S:.0f} s in vain for {what}")
        time.sleep(0.1)


class Job:
    """A submitted job, whose run is in ``run_dir``."""

    def __init__(self, name: str, data: Path, folder: Path, environment: dict[str, str]) -> None:
        self.run_dir, self.output = folder / name, folder / f"{name}.out"
        self._environment = environment
        words = ["sbatch", "--parsable", f"--output={self.output}", f"--chdir={folder}", str(SCRIPT)]
        words += [f"--dataset={data}", f"--run-dir={self.run_dir}", *TRAINING]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CheckError(f"sbatch failed: {done.stderr.strip()}")
        self.id = done.stdout.strip()

    def epochs(self) -> int:
        """Return how many epochs have been trained."""
        try:
            return len((self.run_dir / "metrics.jsonl").read_text().splitlines())
        except OSError:
            return 0

    def wait_for_epoch(self, count: int) -> None:
        """Wait until ``count`` epochs have been trained, but not all."""
        _wait(f"epoch {count} of job {self.id}", lambda: self.epochs() >= count or self._has_failed())
        if self._has_failed() or self.epochs() >= EPOCHS:
            raise CheckError(f"job {self.id} ended too early:\n{self.output.read_text()}")

    def wait_for_end(self) -> None:
        """Wait until the job has completed."""
        _wait(
            f"the end of job {self.id}", lambda: self._fact("JobState") == "COMPLETED" or self._has_failed()
        )
        if self._has_failed():
            raise CheckError(f"job {self.id} failed:\n{self.output.read_text()}")

    def wait_for_start(self, number: int) -> None:
        """Wait until the job has been started again ``number`` times."""
        _wait(f"start {number} of job {self.id}", lambda: self._starts() >= number or self._has_failed())

    def requeue(self) -> None:
        """Take the job off its node and queue it again."""
        subprocess.run(["scontrol", "requeue", self.id], env=self._environment, check=True)

    def summary(self) -> str:
        """Return what the job printed of its starts and ends."""
        told = ("start ", "resuming ", "a task was ended", "slurmstepd", "srun: error", "test accuracy")
        return "\n".join(line for line in self.output.read_text().splitlines() if line.startswith(told))

    def kill_one_task(self) -> int:
        """Send SIGKILL to the training process with rank 1; return its number."""
        for entry in Path("/proc").iterdir():
            try:
                variables = dict(
                    line.split("=", 1) for line in (entry / "environ").read_text().split("\0") if "=" in line
                )
                words = (entry / "cmdline").read_text().split("\0")
            except (OSError, ValueError):
                continue
            if (
                variables.get("SLURM_JOB_ID") == self.id
                and variables.get("SLURM_PROCID") == "1"
                and "train" in words
            ):
                os.kill(int(entry.name), signal.SIGKILL)
                return int(entry.name)
        raise CheckError(f"job {self.id} has no task of rank 1 to kill")

    def _starts(self) -> int:
        return int(self._fact("Restarts") or 0)

    def _has_failed(self) -> bool:
        return self._fact("JobState") in {"FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL"}

    def _fact(self, name: str) -> str:
        text = _run(["scontrol", "show", "job", self.id], self._environment)
        found = [word.partition("=")[2] for word in text.split() if word.startswith(f"{name}=")]
        return found[0] if found else ""


def same_weights(left: object, right: object) -> bool:
    """Tell whether two checkpoints hold the same numbers, bit for bit, in all their tensors."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_weights(left[key], right[key]) for key in left)
    return type(left) is type(right)


def _weights(run_dir: Path, name: str) -> dict[str, object]:
    content = torch.load(run_dir / name, weights_only=True)
    return {key: value for key, value in content.items() if isinstance(value, dict)}


def main() -> int:
    """Run the trial; return 0 if both runs end with the same bits."""
    with tempfile.TemporaryDirectory(prefix="check-slurm-") as name:
        folder = Path(name)
        os.environ["FOLDSERVE"] = str(Path(sys.executable).with_name("foldserve"))
        data = write_pictures(folder / "pictures", per_class=60)
        with slurm(folder) as environment:
            print(_run(["sinfo", "--version"], environment).strip(), flush=True)
            whole = Job("whole", data, folder, environment)
            whole.wait_for_end()
            print(f"job {whole.id}: {whole.epochs()} epochs in one go", flush=True)
            broken = Job("broken", data, folder, environment)
            broken.wait_for_epoch(3)
            print(f"job {broken.id}: scontrol requeue after {broken.epochs()} epochs", flush=True)
            broken.requeue()
            broken.wait_for_start(1)
            broken.wait_for_epoch(broken.epochs() + 3)
            print(f"job {broken.id}: SIGKILL to task 1, process {broken.kill_one_task()}, ", end="")
            print(f"after {broken.epochs()} epochs", flush=True)
            broken.wait_for_start(2)
            broken.wait_for_end()
            print(broken.summary())
        for file in ("last.pt", "best.pt"):
            left, right = (_weights(job.run_dir, file) for job in (whole, broken))
            count = sum(len(part) for part in left.values() if isinstance(part, dict))
            if not same_weights(left, right):
                raise CheckError(f"{file} differs after the interruptions")
            _change_one_bit(right)
            if same_weights(left, right):
                raise CheckError("the comparison does not notice one changed bit")
            print(f"{file}: the same bits in {count} entries; one changed bit is noticed")
    return 0


def _change_one_bit(content: object) -> bool:
    """Flip the lowest bit of the first number of the first float32 tensor; return whether there was one."""
    if isinstance(content, dict):
        return any(_change_one_bit(value) for value in content.values())
    if isinstance(content, torch.Tensor) and content.dtype == torch.float32 and content.numel():
        content.view(-1)[:1].view(torch.int32).bitwise_xor_(1)
        return True
    return False


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CheckError as error:
        print(f"check-slurm: {error}", file=sys.stderr)
        sys.exit(1)
