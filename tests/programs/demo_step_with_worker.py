"""Run a demo step whose command starts a worker that ignores SIGTERM: `python … LOG`."""

import sys
from pathlib import Path

from nnunet_mamba_mis.demo.running import Step, run_step

WORKER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(60)"
COMMAND = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {WORKER!r}]); print(p.pid); p.wait()"

run_step(Step("fake", "Pretend", ["python", "-c", COMMAND]), Path(sys.argv[1]), {})
