"""Tests parallel jobs: all are run, and a slow or failing one does not delay the others."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from foldserve.serving.repository.parallel_jobs import ParallelJobs
from tests.support.repository_changes import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Return an event that is set at the end of the test, so that jobs waiting for it end."""
    event = threading.Event()
    yield event
    event.set()


def test_all_jobs_run_and_at_most_the_limit_at_a_time() -> None:
    lock, running, most, done = threading.Lock(), 0, 0, []

    def job(number: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.001)
        with lock:
            running -= 1
            done.append(number)

    ParallelJobs(3, slow_s=1000).run({str(number): lambda number=number: job(number) for number in range(40)})
    assert sorted(done) == list(range(40))
    assert most <= 3


@pytest.mark.parametrize("job_count", [1, 2])
def test_hanging_jobs_do_not_delay_others(job_count: int, release: threading.Event) -> None:
    done: list[str] = []
    jobs: dict[str, Callable[[], object]] = {f"a{number}": release.wait for number in range(5)}
    jobs |= {f"z{number}": lambda number=number: done.append(f"z{number}") for number in range(5)}
    models = ParallelJobs(job_count, slow_s=0.01)
    models.run(jobs, leave_slow=True)
    eventually(lambda: len(done) == 5, "the others are done, if slowly")
    assert [name for name in jobs if models.is_busy(name)] == [f"a{number}" for number in range(5)]
    release.set()
    eventually(lambda: not any(models.is_busy(name) for name in jobs), "what was slow ends")


def test_jobs_of_one_name_run_one_at_a_time(release: threading.Event) -> None:
    models = ParallelJobs(2, slow_s=0.01)
    entered = threading.Event()
    with models.alone("model"):
        models.run({"model": entered.set}, leave_slow=True)
        assert not entered.is_set()
    assert entered.wait(60)


def test_error_in_a_job_affects_no_other_unless_it_is_fatal(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []
    models = ParallelJobs(1, fatal=(KeyError,))
    models.run({"bad": lambda: 1 // 0, "good": lambda: done.append("good")})
    assert done == ["good"]
    assert "'bad': failed" in caplog.text

    def fail() -> None:
        raise KeyError("fatal")

    with pytest.raises(KeyError, match="fatal"):
        models.run({"bad": fail, "good": lambda: done.append("again")})


def test_jobs_left_by_earlier_runs_count_too(release: threading.Event) -> None:
    """However often the repository is scanned, at most eight slow loads are running."""
    models = ParallelJobs(1, slow_s=0.01)
    begun: list[str] = []

    def hang(name: str) -> None:
        begun.append(name)
        release.wait()

    for look in range(2):
        jobs = {f"{look} {number}": lambda name=f"{look} {number}": hang(name) for number in range(4)}
        models.run(jobs, leave_slow=True)
    jobs = {f"last {number}": lambda name=f"last {number}": hang(name) for number in range(4)}
    third = threading.Thread(target=models.run, args=(jobs,))
    third.start()
    eventually(lambda: len(begun) >= 9, "one more is begun")
    threading.Event().wait(0.1)
    assert len(begun) == 9
    release.set()
    third.join(60)
    assert len(begun) == 12
