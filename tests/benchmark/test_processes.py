"""Jobs are processes: each runs only once at a time, none is orphaned, and all stop on a signal."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nnunet_mamba_mis import cli
from nnunet_mamba_mis.benchmark.running.jobs import Training
from nnunet_mamba_mis.benchmark.running.local import run_jobs
from nnunet_mamba_mis.benchmark.running.processes import LOCK, RunningJob, holder, is_running, try_lock
from support.benchmark_command import finish_training, make_job
from support.paths import PROGRAMS
from support.waiting import wait_until


def test_workers_of_a_killed_training_do_not_prevent_resuming(tmp_path):
    """nnU-Net's own trainer leaves workers behind when it is killed."""
    job = make_job(tmp_path)
    command = [sys.executable, PROGRAMS / "job_with_worker.py", tmp_path]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    training = int(parent.stdout.readline())
    wait_until(lambda: len(group(training)) == 2)
    assert is_running(job.folder) and try_lock(job) is None
    parent.kill()
    parent.wait()
    # the training process gets SIGTERM when its parent is killed; the worker does not
    wait_until(lambda: len(group(training)) == 1)
    assert is_running(job.folder)
    assert try_lock(job) is None
    wait_until(lambda: not is_running(job.folder))
    assert group(training) == []
    os.close(try_lock(job))


@pytest.mark.parametrize(
    "text", [b"", b"\xff 1\n", b"HOST x\n", b"HOST 0\n", b"HOST -1\n", b"HOST 99999999999\n", b"1 2 3\n"]
)
def test_lock_without_a_valid_holder_still_locks(tmp_path, text):
    job = make_job(tmp_path)
    lock = try_lock(job)
    (job.folder / LOCK).write_bytes(text.replace(b"HOST", socket.gethostname().encode()))
    assert try_lock(job) is None and is_running(job.folder)
    assert holder(job) == "another process"
    os.close(lock)
    assert not is_running(job.folder)


def test_status_works_without_flock(tmp_path):
    job = make_job(tmp_path)
    job.folder.mkdir(parents=True)
    job.log.touch()
    (job.folder / LOCK).touch()
    command = [sys.executable, PROGRAMS / "without_packages.py", "fcntl", Path(cli.__file__).parent / "__main__.py"]
    variables = {**os.environ, "nnUNet_results": str(tmp_path)}
    for arguments, status in ((["benchmark", "status"], 0), (["benchmark", "run", "-d", "1", "--trainers", "T"], 1)):
        run = subprocess.run([*command, *arguments], capture_output=True, text=True, env=variables)
        assert run.returncode == status and "Traceback" not in run.stderr, run.stderr
        assert status == 0 or run.stderr.count("\n") == 1


def group(leader: int) -> list[int]:
    """Return the running processes of a group."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, number = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(number) == leader and state != "Z":
            members.append(int(stat.parent.name))
    return members


@pytest.mark.parametrize("statuses, outcome, ran", [((0, 3), "exit status 3", "03"), ((4, 0), "exit status 4", "4")])
def test_second_command_of_a_job_starts_only_if_the_first_succeeds(tmp_path, monkeypatch, statuses, outcome, ran):
    job = make_job(tmp_path)
    commands = [["python", "-c", f"import sys; print('ran', {status}); sys.exit({status})"] for status in statuses]
    monkeypatch.setattr(Training, "commands", lambda job, device: commands)
    assert RunningJob(job, try_lock(job), "cpu", {}).wait() == f"failed: {outcome}"
    assert "".join(re.findall(r"^ran (\d)", job.log.read_text(), re.M)) == ran
    assert not is_running(job.folder)


def test_failed_job_is_retried_by_the_next_run(tmp_path, monkeypatch):
    job, finished = make_job(tmp_path / "results"), make_job(tmp_path / "finished")
    finish_training(finished)
    commands = {1: ["python", "-c", "raise SystemExit(3)"], 0: ["cp", "-a", f"{finished.folder}/.", str(job.folder)]}
    for status, command in commands.items():
        monkeypatch.setattr(Training, "commands", lambda job, device, command=command: [command])
        assert run_jobs([job], [{}], "cpu") == status
    assert re.findall(r"(failed: exit status 3|done)$", job.log.read_text(), re.M) == ["failed: exit status 3", "done"]
    assert run_jobs([job], [{}], "cpu") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_signal_stops_running_jobs_and_sets_the_exit_status(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)  # even where tests run under nohup
    program = "import signal; print('up', flush=True); signal.pause()"
    monkeypatch.setattr(Training, "commands", lambda job, device: [["python", "-c", program]])
    jobs = [make_job(tmp_path, fold) for fold in (0, 1)]

    def stop() -> None:
        wait_until(lambda: jobs[0].log.exists() and re.search(r"^up$", jobs[0].log.read_text(), re.M))
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    assert run_jobs(jobs, [{}], "cpu") == 128 + number
    thread.join()
    assert "2 jobs: 1 stopped, 1 not started" in capsys.readouterr().out
    assert not is_running(jobs[0].folder)
