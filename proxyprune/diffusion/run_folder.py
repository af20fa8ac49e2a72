"""The paths of a training run's files. Imports no torch: reports read runs without it.

run/
  config.json  images.json  layout.json  ledger.json  loss_by_snr.json
  base/        result.json  base.safetensors  checkpoint.safetensors  log.jsonl  samples/
  expert-0/    result.json  cut-1/  network/  teacher.safetensors, and what a base has
  pipeline/
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CutFolder:
    """One cut of an expert.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def plan(self) -> Path:
        """The channels and blocks that leave."""
        return self.path / "plan.json"

    @property
    def surgery(self) -> Path:
        """The cut of the network."""
        return self.path / "surgery.json"

    @property
    def ranking(self) -> Path:
        """The ranking that the plan was made from."""
        return self.path / "ranking.json"


@dataclass(frozen=True)
class StageFolder:
    """A stage of training: the base or an expert.

    Attributes:
        path: The folder; its name is that of the stage.
    """

    path: Path

    @property
    def result(self) -> Path:
        """Record of the finished stage; a stage without it is not finished."""
        return self.path / "result.json"

    @property
    def checkpoint(self) -> Path:
        """State that training resumes from."""
        return self.path / "checkpoint.safetensors"

    @property
    def log(self) -> Path:
        """One line of JSON for each logged step."""
        return self.path / "log.jsonl"

    @property
    def lock(self) -> Path:
        """File that the job which works on the stage has locked."""
        return self.path / ".claimed"

    def grid(self, step: int) -> Path:
        """Sample grid that was drawn after a step."""
        return self.path / "samples" / f"{step:07d}.png"

    def grids(self) -> list[Path]:
        """All sample grids, by rising step."""
        return sorted((self.path / "samples").glob("*.png"))


@dataclass(frozen=True)
class BaseFolder(StageFolder):
    """Stage 1."""

    @property
    def weights(self) -> Path:
        """Averaged weights of the finished base."""
        return self.path / "base.safetensors"


@dataclass(frozen=True)
class ExpertFolder(StageFolder):
    """Stage 2 of one interval."""

    @property
    def network(self) -> Path:
        """Folder of the finished expert, as a pipeline holds it."""
        return self.path / "network"

    @property
    def teacher(self) -> Path:
        """Weights of the expert before its first cut, if it learns from them."""
        return self.path / "teacher.safetensors"

    def cut(self, number: int) -> CutFolder:
        """One of the cuts, counted from 1."""
        return CutFolder(self.path / f"cut-{number}")


@dataclass(frozen=True)
class RunFolder:
    """A run of `StepAdaptiveTrainer`.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Configuration of the run."""
        return self.path / "config.json"

    @property
    def images(self) -> Path:
        """Fingerprint of the images that the run was begun with."""
        return self.path / "images.json"

    @property
    def layout(self) -> Path:
        """Intervals and budgets."""
        return self.path / "layout.json"

    @property
    def ledger(self) -> Path:
        """Training compute of the finished run."""
        return self.path / "ledger.json"

    @property
    def losses(self) -> Path:
        """Held-out loss by noise level."""
        return self.path / "loss_by_snr.json"

    @property
    def trackers(self) -> Path:
        """Folder for accelerate's trackers."""
        return self.path / "trackers"

    @property
    def pipeline(self) -> Path:
        """Folder of the finished pipeline."""
        return self.path / "pipeline"

    @property
    def base(self) -> BaseFolder:
        """Stage 1."""
        return BaseFolder(self.path / "base")

    def expert(self, index: int) -> ExpertFolder:
        """Stage 2 of one interval, counted from the clean end."""
        return ExpertFolder(self.path / f"expert-{index}")

    def experts(self) -> list[ExpertFolder]:
        """Folders of experts 0, 1, ... up to the last that was begun; those before it may be missing."""
        names = (path.name.removeprefix("expert-") for path in self.path.glob("expert-*"))
        begun = [int(name) for name in names if name.isdecimal()]
        return [self.expert(index) for index in range(max(begun, default=-1) + 1)]

    def stage(self, name: str) -> StageFolder:
        """Return a stage by its name, such as "base" or "expert-2"."""
        return StageFolder(self.path / name)

    def stages(self) -> list[StageFolder]:
        """All folders of the run that may be stages, by name."""
        return [StageFolder(path) for path in sorted(self.path.glob("*")) if path.is_dir()]
