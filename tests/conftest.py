"""What every test shares: one thread each, quiet libraries, a fixed hypothesis profile, and tests of one network on one worker."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.insert(0, str(Path(__file__).parent))  # so that `import zoo` works from every test folder and import mode

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)  # the networks are small, and pytest-xdist fills the machine

settings.register_profile(
    "fixed", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("fixed")


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
