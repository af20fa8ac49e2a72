"""Serve tools to an assistant over stdin and stdout, on a model file or on a recorded session."""

from __future__ import annotations

import contextlib
from pathlib import Path

from proxyprune.assistant import Bounds, PruningTask, Replay, Session, serve
from proxyprune.assistant.folder import SessionFolder
from proxyprune.cli.options.session_options import SessionOptions
from proxyprune.cli.options.shared import ModelOptions, RecoveryOptions
from proxyprune.errors import InputError
from proxyprune.measuring.timing import Timing
from proxyprune.modelfile import load_model_file, split_spec
from proxyprune.planning.request import PlanRequest

RECOVERY_STEPS = 50
"""Updates of a recovery, when the command line does not say."""


def serve_assistant(source: ModelOptions, request: PlanRequest, how: SessionOptions, recovery: RecoveryOptions, timing: Timing) -> None:
    """Serve a session on a model file; the network is built at the first call."""
    workspace = how.workspace or Path(f"{split_spec(source.model)[0].stem}-session")
    SessionFolder.at(workspace)
    with contextlib.ExitStack() as opened:

        def open_session() -> Session:
            task = _task(source, request, how, recovery, timing)
            return opened.enter_context(Session.open(task, workspace, _bounds(how)))

        serve(open_session)


def serve_replay(how: SessionOptions) -> None:
    """Serve a recorded session, without a model."""
    if how.replay is None:
        raise InputError("Expected the folder of a recorded session.")
    replay = Replay(how.replay)
    serve(lambda: replay)


def _task(source: ModelOptions, request: PlanRequest, how: SessionOptions, recovery: RecoveryOptions, timing: Timing) -> PruningTask:
    file = load_model_file(source.model, seed=source.seed)
    return PruningTask.of(
        file.build_model(source.weights),
        file.example_inputs(),
        request.target,
        quality=file.quality_fn,
        recovery=recovery.recovery(RECOVERY_STEPS),
        seed=source.seed,
        show_source=how.show_source,
        timing=timing,
        also=file.also_inputs(),
        **source.trace_keywords,
        **request.keywords(),
        batches=file.calibration_batches(),
        held_out=file.validation_batches(),
        loss_fn=file.loss_fn,
        training_loss_fn=file.training_loss_fn,
    )


def _bounds(how: SessionOptions) -> Bounds:
    return Bounds(how.calls, how.measurements, how.networks, how.seconds_per_call)
