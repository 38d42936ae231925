"""The demo prints its commands, watches and logs their output, and stops them together with their workers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest

from nnunet_mamba_mis.cli import main as cli
from nnunet_mamba_mis.demo.running import Step, run_step
from nnunet_mamba_mis.demo.synthetic_polyps import write_synthetic_set
from nnunet_mamba_mis.utils.errors import UserError
from support.paths import PROGRAMS
from support.waiting import runs, wait_until


def python_step(code: str, **kwargs) -> Step:
    return Step("fake", "Pretend", ["python", "-c", textwrap.dedent(code)], **kwargs)


def test_a_step_shows_its_command_logs_its_output_and_reports_lines(tmp_path, capsys):
    code = """
    import os
    print("epoch", os.environ["nnUNet_raw"], os.environ["ONLY_HERE"])
    print("tail", end="")
    """
    seen = []
    step = python_step(
        code,
        remark="why",
        environment={"ONLY_HERE": "b c"},
        watch=lambda line: seen.append(line) or ("shown" if "epoch" in line else None),
    )
    seconds = run_step(step, tmp_path / "fake.log", {"nnUNet_raw": "here"})
    output = capsys.readouterr().out
    assert "# why\n" in output and "$ ONLY_HERE='b c' python -c" in output and "  shown\n" in output
    assert seen == ["epoch here b c"]
    assert (tmp_path / "fake.log").read_text() == "epoch here b c\ntail"
    assert "ONLY_HERE" not in os.environ
    assert 0 < seconds < 30


def test_lines_are_reported_while_the_command_runs(tmp_path):
    code = f"""
    import pathlib, time
    print("first")
    for _ in range(600):
        if pathlib.Path({str(tmp_path / "seen")!r}).exists():
            break
        time.sleep(0.05)
    else:
        raise SystemExit("the line was not reported")
    """
    run_step(python_step(code, watch=lambda line: (tmp_path / "seen").touch()), tmp_path / "fake.log", {})


def test_a_failing_step_names_itself_and_shows_the_end_of_its_log(tmp_path):
    code = """
    import sys
    for i in range(40):
        print("line", i)
    print("10%\\r20%", file=sys.stderr)
    sys.exit("out of luck")
    """
    log = tmp_path / "fake.log"
    with pytest.raises(UserError) as failure:
        run_step(python_step(code), log, {})
    text = str(failure.value)
    assert "Pretend" in text and "exit status 1" in text and str(log) in text
    lines = [line.removeprefix("  | ") for line in text.splitlines() if line.startswith("  | ")]
    assert lines == [*(f"line {i}" for i in range(27, 40)), "20%", "out of luck"]


def test_the_error_of_a_killed_step_names_the_signal(tmp_path):
    with pytest.raises(UserError, match="signal 9"):
        run_step(python_step("import os; os.kill(os.getpid(), 9)"), tmp_path / "fake.log", {})


def test_a_command_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(UserError, match="nnUNetv2_no_such_command"):
        run_step(Step("fake", "Pretend", ["nnUNetv2_no_such_command"]), tmp_path / "fake.log", {})


def test_a_failing_child_ends_the_demo_with_exit_status_1(tmp_path, capsys):
    # the broken image is only detected during the conversion, in a child process
    write_synthetic_set(tmp_path / "source", 6)
    image = tmp_path / "source" / "images" / "polyp_003.jpg"
    image.write_bytes(b"")
    out = tmp_path / "out"
    assert cli.main(["demo", "-i", str(tmp_path / "source"), "-o", str(out), "-device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert "polyp_003.jpg" in captured.err and str(out / "logs" / "1_convert.log") in captured.err
    assert f"export nnUNet_raw={out}/nnUNet_raw" in captured.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_an_interrupt_ends_the_command_and_its_workers(tmp_path, number):
    log = tmp_path / "log"
    command = [sys.executable, PROGRAMS / "demo_step_with_worker.py", log]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: process.poll() is not None or (log.exists() and "ready" in log.read_text()), 30)
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in error
    worker = int(re.search(r"^\d+$", log.read_text(), re.MULTILINE)[0])
    wait_until(lambda: not runs(worker), 10, "the worker's end")
