"""A run that is stopped by a signal: the step is finished, its checkpoint is there, and the run ends as if it had never been stopped."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from proxyprune.cli import main
from proxyprune.diffusion import StepAdaptiveConfig, StepAdaptiveTrainer
from proxyprune.diffusion.training.checkpoint import Checkpoint
from proxyprune.diffusion.training.interruption import TrainingStopped, Watch
from proxyprune.support.progress import duration
from tests.shared.diffusion_runs import arguments, logged, small_config, start


class Alone:
    """What a watch needs of an accelerator with one process."""

    num_processes, is_main_process = 1, True


def test_the_first_signal_waits_for_the_step_and_the_second_does_not():
    """Handlers are as before afterwards, whether a signal came or not."""
    before = signal.getsignal(signal.SIGINT)
    with Watch(Alone(), 0.0) as watch:
        assert watch.decision() == (False, False)
        os.kill(os.getpid(), signal.SIGINT)
        assert watch.decision() == (True, True)
        assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_checkpoints_by_minutes():
    """One is due when so much time has passed since the last one, and none with 0."""
    watch = Watch(Alone(), 1e-9)
    time.sleep(0.001)
    assert watch.decision() == (True, False)
    watch = Watch(Alone(), 10.0)
    assert watch.decision() == (False, False)


def test_another_thread_trains_without_handlers(tmp_path):
    """Python allows none there; training works all the same."""
    config = small_config(tmp_path, compute__reference_steps=12)
    ends = []
    thread = threading.Thread(target=lambda: ends.append(StepAdaptiveTrainer(config, tmp_path / "run").train_base()))
    thread.start()
    thread.join()
    assert ends


def stoppable(folder: Path, **changes: Any) -> StepAdaptiveConfig:
    """Return a run without checkpoints for a long time, whose base logs every step."""
    return small_config(folder, **{"run__checkpoint_every": 100000, "compute__reference_steps": 150} | changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the weights of the base of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return StepAdaptiveTrainer(stoppable(folder), folder / "run").train_base()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_its_step_and_ends_as_one_that_was_not(tmp_path, whole, number):
    """Although no checkpoint was due for a long time; the base has the same weights, bit for bit."""
    config, out = stoppable(tmp_path), tmp_path / "run"
    with start(config, out, extra=("--stage", "base")) as process:
        logged(out, "base", 3, process)
        process.send_signal(number)
        said = " ".join(process.communicate()[1].split())
    assert process.returncode == 130
    step = Checkpoint.read(out / "base").record["step"]
    assert step >= 3
    assert f"Stopped base at step {step:,} of" in said
    assert "The same command resumes the run" in said
    again = CliRunner().invoke(main, arguments(config, out, "--stage", "base"))
    assert again.exit_code == 0, again.output
    stopped = load_file(out / "base" / "base.safetensors")
    assert stopped.keys() == whole.keys()
    assert all(torch.equal(stopped[name], value) for name, value in whole.items())


def test_all_processes_stop_when_one_is_stopped(tmp_path):
    """A signal to the second of two processes alone: both stop after the same step, whose checkpoint is written, and the run goes on."""
    config, out = stoppable(tmp_path, run__batch_size=8), tmp_path / "run"
    with start(config, out, processes=2, extra=("--stage", "base")) as process:
        logged(out, "base", 3, process)
        os.kill(process.pids[1], signal.SIGTERM)
        _, said = process.communicate()
    found = Checkpoint.read(out / "base")
    assert found is not None
    step = found.record["step"]
    assert 3 <= step < found.record["phase"]["stop"]
    assert len(set(re.findall(r"Stopped base at step ([\d,]+) of", said))) == 1
    with start(config, out, processes=2, extra=("--stage", "base")) as again:
        _, errors = again.communicate()
    assert again.returncode == 0, errors
    assert (out / "base" / "base.safetensors").is_file()


def test_stopping_is_no_exception():
    """`except Exception` around training does not swallow it."""
    assert issubclass(TrainingStopped, KeyboardInterrupt)
    assert not issubclass(TrainingStopped, Exception)


def test_a_finished_run_says_so(tmp_path):
    """The same command again trains nothing and says that there was nothing to do."""
    (tmp_path / "config.json").write_text(small_config(tmp_path, compute__reference_steps=16).to_text())
    command = ["diffusion", "train", "--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "run")]
    first = CliRunner().invoke(main, command)
    assert first.exit_code == 0, first.output
    assert "was finished before" not in first.output
    again = CliRunner().invoke(main, command)
    assert "was finished before; nothing was trained" in " ".join(again.output.split())
    assert json.loads((tmp_path / "run" / "ledger.json").read_text())


def test_lengths_of_time():
    """In the unit that suits them."""
    assert [duration(seconds) for seconds in (3.4, 99, 100, 3600, 6000, 40000)] == ["3 s", "99 s", "2 min", "60 min", "1.7 h", "11.1 h"]
