"""A pytest plugin whose option `--finished FILE` records test outcomes and skips tests that the file already lists.

A test counts as failed if it began twice and never ended, because it crashed the process or hung. After an error that
leaves CUDA unusable in this process, the session ends with exit status 75: run pytest again for the remaining tests.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

AGAIN = 75
BREAKS_CUDA = ("CUDA error", "AcceleratorError")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--finished", type=Path, required=True, help="tab-separated: outcome, seconds, test")


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin that records outcomes."""
    config.pluginmanager.register(_Finished(config.getoption("finished")))


class _Finished:
    def __init__(self, path: Path) -> None:
        self.path = path
        rows = [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []
        self.outcomes = {name: outcome for outcome, _, name in rows if outcome != "began"}
        began = Counter(name for outcome, _, name in rows if outcome == "began")
        for name, times in began.items():
            if times > 1 and name not in self.outcomes:
                self.record("failed", 0, name)
        self.parts: list[pytest.TestReport] = []
        self.is_cuda_broken = False

    def record(self, outcome: str, seconds: float, name: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{outcome}\t{seconds:.1f}\t{name}\n")
        if outcome != "began":
            self.outcomes[name] = outcome

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in self.outcomes])
        items[:] = [item for item in items if item.nodeid not in self.outcomes]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.parts = []
        self.record("began", 0, nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.parts.append(report)
        self.is_cuda_broken |= report.failed and any(text in report.longreprtext for text in BREAKS_CUDA)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        result = yield
        outcomes = {part.outcome for part in self.parts}
        outcome = next(o for o in ("failed", "skipped", "passed") if o in outcomes)
        self.record(outcome, sum(part.duration for part in self.parts), item.nodeid)
        if self.is_cuda_broken:
            item.session.shouldstop = "CUDA is unusable in this process"
        return result

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.is_cuda_broken:
            session.exitstatus = AGAIN
        elif session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and self.outcomes:
            failed = "failed" in self.outcomes.values()
            session.exitstatus = pytest.ExitCode.TESTS_FAILED if failed else pytest.ExitCode.OK
