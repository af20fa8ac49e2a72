"""What every test shares: one thread each, quiet libraries, a fixed hypothesis profile, and tests of one network on one worker."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.insert(0, str(Path(__file__).parent / "shared"))  # `import zoo` works from every test folder

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

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


def _network_of(nodeid: str) -> str:
    """Scope of a test: the first parameter's id, which is the network in tests over the zoo, or else the test itself."""
    head, bracket, parameters = nodeid.partition("[")
    return parameters.rstrip("]").split("-")[0] if bracket else head


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Send all tests of a network to one worker, where its trace is cached."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByNetwork(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _network_of(nodeid)

    return ByNetwork(config, log)


DURATIONS = Path(__file__).parent / "durations.json"
"""Seconds of each test function over all its parameters, in the run that `make durations` recorded; only those above half a second."""
_SLOW_SECONDS = 0.5
_recorded: defaultdict[str, float] = defaultdict(float)


def _function_of(nodeid: str) -> str:
    return nodeid.partition("[")[0].partition("@")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the functions that took long as slow, so that `-m "not slow"` is quick; a new test counts as quick until it was recorded."""
    known = json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.is_file() else {}
    for item in items:
        if known.get(_function_of(item.nodeid), 0.0) > _SLOW_SECONDS:
            item.add_marker(pytest.mark.slow)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up what a function takes, its fixtures included."""
    _recorded[_function_of(report.nodeid)] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the durations where PROXYPRUNE_DURATIONS says so; only the process that gathers the reports of all workers does."""
    place = os.environ.get("PROXYPRUNE_DURATIONS")
    if place and not hasattr(session.config, "workerinput"):
        slow = {name: round(seconds, 2) for name, seconds in sorted(_recorded.items()) if seconds > _SLOW_SECONDS}
        Path(place).write_text(json.dumps(slow, indent=1) + "\n", encoding="utf-8")
