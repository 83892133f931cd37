"""What mutants.py adds to pytest, as `-p mutant_plugin`: a record of the tests, or the chosen ones alone."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path

import pytest
from coverage import Coverage

# variables: the file of the chosen tests, and that of the record
SELECTION, RECORD = "MINIVIT_MUTANT_TESTS", "MINIVIT_MUTANT_RECORD"
MEMORY = 12 << 30  # bytes


class Recorder:
    """Writes down the lines that each test executes, and the seconds of each test that passes."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.coverage = Coverage(str(database), source=["minivit"], config_file=False)
        self.coverage.start()
        self.seconds: dict[str, float] = {}
        self.bad: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if not report.passed:
            self.bad.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        self.coverage.save()
        good = {test: seconds for test, seconds in self.seconds.items() if test not in self.bad}
        self.database.with_suffix(".json").write_text(json.dumps(good), "utf-8")


class Selection:
    """Runs the chosen tests in the order of the file, which has the seconds that each may take."""

    def __init__(self, path: Path) -> None:
        self.limits: dict[str, float] = json.loads(path.read_text("utf-8"))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))  # a mutant may ask for any size

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        order = {test: number for number, test in enumerate(self.limits)}
        items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, self.limits[nodeid])  # ends the process, also within NumPy

    def pytest_runtest_logfinish(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


PLUGIN: Recorder | Selection | None = None
if RECORD in os.environ:  # now, before conftest.py imports minivit
    PLUGIN = Recorder(Path(os.environ[RECORD]))
elif SELECTION in os.environ:
    PLUGIN = Selection(Path(os.environ[SELECTION]))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(PLUGIN)
