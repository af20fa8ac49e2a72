"""Settings of all tests: one thread each, quiet libraries, a fixed hypothesis profile, and the order of tests on workers."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start
sys.path.insert(0, str(Path(__file__).parent / "shared"))  # `import zoo` works from every test folder

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

gc.set_threshold(50_000, 5, 5)  # imports of large libraries make objects that stay, and each collection would examine them again
torch.set_num_threads(1)  # the networks are small, and pytest-xdist fills the machine

# torch describes every tensor of every trace to this logger when it has a handler, which takes longer than the trace. pytest gives one to
# each logger that does not propagate.
logging.getLogger("torch.__trace").handlers.clear()
logging.getLogger("torch.__trace").propagate = True

_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
_PHASES = (Phase.explicit, Phase.generate)

# An example traces two networks: shrinking one would take minutes. HYPOTHESIS_PROFILE=shrink does it on request.
settings.register_profile("fixed", derandomize=True, database=None, deadline=None, suppress_health_check=_SLOW, phases=_PHASES)
settings.register_profile("shrink", settings.get_profile("fixed"), phases=(*_PHASES, Phase.shrink))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


DURATIONS = Path(__file__).parent / "durations.json"
"""Seconds of each test function over all its parameters, in the run that `make durations` recorded; only those above half a second."""
_SLOW_SECONDS = 0.5
_recorded: defaultdict[str, float] = defaultdict(float)


@cache
def _prepares_once(path: str) -> bool:
    """Return whether a test file has a fixture that all its tests share: a second worker would prepare it again."""
    file = Path(__file__).parents[1] / path
    return file.is_file() and 'scope="module"' in file.read_text(encoding="utf-8")


def _scope_of(nodeid: str) -> str:
    """Name the tests that belong on one worker: those of a file with a shared fixture, or of a network (first parameter over the zoo)."""
    head, bracket, parameters = nodeid.partition("[")
    path = head.partition("::")[0]
    if _prepares_once(path):
        return path
    return parameters.rstrip("]").split("-")[0] if bracket else head


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Send tests that share a network or a fixture to one worker, which then prepares it once."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByScope(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope_of(nodeid)

    config.option.loadscopereorder = False  # else the scope with the most tests is the first, however short they are
    return ByScope(config, log)


def _function_of(nodeid: str) -> str:
    return nodeid.partition("[")[0].partition("@")[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the functions that took long as slow, so that `-m "not slow"` is quick; a new test counts as quick until it was recorded.

    Workers of pytest-xdist sort by what a scope took, longest first, so that none is left alone with a long one at the end.
    """
    known: dict[str, float] = json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.is_file() else {}
    for item in items:
        if known.get(_function_of(item.nodeid), 0.0) > _SLOW_SECONDS:
            item.add_marker(pytest.mark.slow)
    if hasattr(config, "workerinput"):
        seconds = _seconds_of_scopes([item.nodeid for item in items], known)
        items.sort(key=lambda item: -seconds[_scope_of(item.nodeid)])


def _seconds_of_scopes(nodeids: list[str], known: dict[str, float]) -> dict[str, float]:
    """Return the recorded seconds of each scope; a function's are divided evenly among its cases."""
    cases = Counter(map(_function_of, nodeids))
    found: defaultdict[str, float] = defaultdict(float)
    for nodeid in nodeids:
        function = _function_of(nodeid)
        found[_scope_of(nodeid)] += known.get(function, 0.0) / cases[function]
    return found


_MANY_MODULES = 50
_modules_frozen = 0


def pytest_runtest_logfinish() -> None:
    """Take what was imported since the last time out of the garbage collector's sight; it stays until the process ends."""
    global _modules_frozen
    if len(sys.modules) > _modules_frozen + _MANY_MODULES:
        _modules_frozen = len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up what a function takes, its fixtures included."""
    _recorded[_function_of(report.nodeid)] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the durations where PROXYPRUNE_DURATIONS says so; only the process that gathers the reports of all workers does."""
    place = os.environ.get("PROXYPRUNE_DURATIONS")
    if place and not hasattr(session.config, "workerinput"):
        slow = {name: round(seconds, 2) for name, seconds in sorted(_recorded.items()) if seconds > _SLOW_SECONDS}
        Path(place).write_text(json.dumps(slow, indent=1) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def own_tables(tmp_path_factory):
    """Keep the cost tables of a module's tests in one folder, apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("tables")))
        yield
