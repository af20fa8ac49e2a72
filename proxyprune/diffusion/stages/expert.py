"""One expert: from the base to a smaller network that works in one interval, cut by cut, with training in between.

Where the expert stands (which cuts were made, which step it is at) lies in its folder, so it can be killed at any moment and goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from proxyprune.applying.training_state import carry_optimizer, carry_state
from proxyprune.diffusion.process.intervals import Interval
from proxyprune.diffusion.process.objective import Losses, Objective
from proxyprune.diffusion.records import read_json, read_record, read_weights
from proxyprune.diffusion.run_folder import ExpertFolder
from proxyprune.diffusion.sampling.experts import read_surgery, save_expert
from proxyprune.diffusion.setup import Setup
from proxyprune.diffusion.stages.judging import judge
from proxyprune.diffusion.stages.sample_grids import SampleGrids, affordable_steps_and_grids
from proxyprune.diffusion.training.checkpoint import Checkpoint
from proxyprune.diffusion.training.ledger import Entry, Ledger, training_macs
from proxyprune.diffusion.training.loop import Loop
from proxyprune.diffusion.training.stage_lock import claimed
from proxyprune.diffusion.training.state import Phase, Training, new_optimizer
from proxyprune.diffusion.training.trackers import rewind
from proxyprune.errors import ComputeError
from proxyprune.graph.build import trace_like
from proxyprune.planning.plan import PrunePlan
from proxyprune.result import PruneResult, make_report
from proxyprune.scoring.ranking import Ranking
from proxyprune.support.files import write_json, write_text
from proxyprune.surgery.perform import perform


def _compensated_alike(averaged: Mapping[str, Tensor], cut: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Add to averaged weights what compensation added to the network's own.

    Args:
        averaged: Averaged weights after the cut.
        cut: The network's weights as the cut left them.
        model: The network after compensation.
    """
    now = model.state_dict()
    floating = {name for name, value in averaged.items() if value.is_floating_point()}
    return {name: value + (now[name] - cut[name]).to(value) if name in floating else now[name] for name, value in averaged.items()}


@dataclass(frozen=True)
class Specialist:
    """Trains the expert of one interval.

    Attributes:
        setup: The run.
        interval: Where it works.
        fraction: Of the base's MACs or time; 1.0 stays whole.
        allowance_macs: Training compute that it may spend, scoring included.
        base: Weights of the base.
        folder: Where it goes.
        base_losses: Of the base by timestep, where its loss is weighed against them.
    """

    setup: Setup
    interval: Interval
    fraction: float
    allowance_macs: int
    base: dict[str, Tensor]
    folder: ExpertFolder
    base_losses: Losses = ()

    @property
    def name(self) -> str:
        """Name of the stage."""
        return self.folder.path.name

    @property
    def _shares(self) -> tuple[float, ...]:
        """Share of the allowance that is spent at the end of each phase."""
        compute, rounds = self.setup.config.compute, self.setup.config.pruning.rounds
        if self.fraction >= 1.0:
            return (1.0,)
        between = compute.between_share if rounds > 1 else 0.0
        steps = [compute.whole_share + (1.0 - compute.whole_share) * between * j / max(1, rounds - 1) for j in range(rounds)]
        return (*steps, 1.0)

    def run(self) -> dict[str, Any]:
        """Train, and return what is recorded of it; at once when it is done already.

        Raises:
            DivergedError: If the loss is not finite.
            ComputeError: If scoring alone exceeds the allowance.
        """
        with claimed(self.folder.path, mine=self.setup.accelerator.is_main_process):
            done = read_record(self.folder.result, "macs", "params", "ledger")
            return self._train() if done is None else done

    def _train(self) -> dict[str, Any]:
        training = self._restored()
        for number in range(training.phase.number, len(self._shares)):
            if number > training.phase.number:
                training = self._cut(training, number)
            elif training.step == 0 and training.phase.stop == 0:
                training.phase = self._phase(training, number, self.setup.base_macs)
            loop = self._loop(training)
            loop.train(training)
        if training.step == 0:
            raise ComputeError(
                f"{self.allowance_macs:,} training MACs for {self.name} pay for no step of training after {training.ledger.spent_macs:,} "
                "for scoring channels. Raise compute.reference_steps, or score with fewer images (pruning.calibration_batches)."
            )
        return self._finish(training)

    def _restored(self) -> Training:
        """Return the state to go on from: a checkpoint, or the base."""
        found = Checkpoint.read(self.folder.path)
        stage = self.setup.config.experts
        if self.setup.accelerator.is_main_process:
            rewind(self.folder.path, 0 if found is None else found.record["step"])
        if found is None:
            return Training.begin(self.setup.base_model(self.base), stage, Ledger(self.allowance_macs))
        model = self.setup.base_model()
        for number in range(1, found.record["phase"]["number"] + 1):
            perform(model, read_surgery(self.folder.cut(number).surgery))
        training = Training.begin(model, stage, Ledger(self.allowance_macs))
        training.restore(found, self.setup.accelerator.process_index)
        return training

    def _cut(self, training: Training, number: int) -> Training:
        """Prune what there is to the size of the next phase; optimizer and averages follow. Every process computes the same cut."""
        self._remember_teacher(training)
        rounds = len(self._shares) - 1
        share = self.fraction ** (number / rounds)
        ledger = training.ledger.add(self._spent(training), self._taught(training))
        training.model.eval()
        judged = judge(self.setup, training.model, self.interval, int(share * self.setup.base_macs), "expert", self.base_losses)
        result, compensating = judged.cut(self.setup, training.model, share)
        grown = Training(
            result.model,
            training.ema,
            carry_optimizer(training.optimizer, training.model, result.model, result.surgery)
            if training.step
            else new_optimizer(result.model, self.setup.config.experts),
            step=training.step,
            ledger=ledger.add(judged.entry, *compensating),
            scaler=training.scaler,
        )
        if training.ema.decay:
            averaged = carry_state(training.ema.state, result.surgery, result.model)
            if compensating:
                averaged = _compensated_alike(
                    averaged, carry_state(training.model.state_dict(), result.surgery, result.model), result.model
                )
            training.ema.load(averaged, training.ema.updates)
        grown.phase = self._phase(grown, number, result.plan.macs)
        if self.setup.accelerator.is_main_process:
            place = self.folder.cut(number)
            write_json(place.surgery, result.surgery.to_dict())
            write_json(place.ranking, result.ranking.to_dict())
            write_text(place.plan, result.plan.to_text())
        self.setup.accelerator.wait_for_everyone()  # every process reads the plan from there
        self._loop(grown).save(grown)  # a run that is killed from here on does not prune again
        return grown

    def _remember_teacher(self, training: Training) -> None:
        if self.setup.config.experts.teacher != "expert" or training.phase.number != 0 or not self.setup.accelerator.is_main_process:
            return
        self.folder.path.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous().clone() for name, value in training.ema.best(training.model).items()}, self.folder.teacher)

    def _teacher(self, number: int) -> nn.Module | None:
        kind = self.setup.config.experts.teacher
        if kind == "none" or (kind == "expert" and number == 0) or self.setup.config.experts.teacher_weight == 0.0:
            return None
        self.setup.accelerator.wait_for_everyone()
        weights = (
            self.base if kind == "base" else read_weights(self.folder.teacher, f"Remove {self.folder.path} to train this expert again.")
        )
        return self.setup.base_model(weights).eval().requires_grad_(False)

    def _macs(self, number: int) -> int:
        """MACs of the network in a phase."""
        if number == 0:
            return self.setup.base_macs
        return PrunePlan.from_json(self.folder.cut(number).plan).macs

    def _time(self, number: int) -> float | None:
        """Share of the base's time that the network of a phase was measured to take, or None where no time was measured."""
        planned = PrunePlan.from_json(self.folder.cut(number).plan).time if number else None
        return None if planned is None or planned.measured is None else planned.measured.ratio[1]

    def _phase(self, training: Training, number: int, macs: int) -> Phase:
        """Return the next phase: the steps that are left for a network of so many MACs."""
        config, planned = self.setup.config, macs
        if number and config.budgets.metric == "macs":  # not what the plan has, so that every scorer gets as many steps
            planned = int(self.setup.base_macs * self.fraction ** (number / (len(self._shares) - 1)))
        left = int(self._shares[number] * self.allowance_macs) - self._counted(training)
        teacher = self.setup.base_macs if self._has_teacher(number) else 0
        charged = planned if config.compute.saved_to_recovery else self.setup.base_macs
        steps = affordable_steps_and_grids(self.setup, max(0, left), charged, teacher, training.step)
        begin = training.ledger.spent_macs / self.allowance_macs if training.step else 0.0  # what scoring cost takes nothing off the warmup
        return Phase(number, training.step, training.step + steps, (min(begin, self._shares[number]), self._shares[number]))

    def _counted(self, training: Training) -> int:
        """MACs that count as spent: without recovery from what is saved, every step counts as one of the whole network."""
        config, spent = self.setup.config, training.ledger.spent_macs
        if config.compute.saved_to_recovery:
            return spent
        steps = sum(entry.macs for entry in training.ledger.entries if entry.what == "training")
        return spent - steps + training_macs(self.setup.base_macs, training.step * config.run.batch_size)

    def _has_teacher(self, number: int) -> bool:
        experts = self.setup.config.experts
        return experts.teacher_weight > 0.0 and (experts.teacher == "base" or (experts.teacher == "expert" and number > 0))

    def _spent(self, training: Training) -> Entry:
        """Return what the phase that ended cost."""
        images = (training.step - training.phase.start) * self.setup.config.run.batch_size
        return Entry("expert", self.interval.index, "training", images, training_macs(self._macs(training.phase.number), images))

    def _taught(self, training: Training) -> Entry:
        images = (training.step - training.phase.start) * self.setup.config.run.batch_size
        macs = self.setup.base_macs if self._has_teacher(training.phase.number) else 0
        return Entry("expert", self.interval.index, "teacher", images, macs * images)

    def _loop(self, training: Training) -> Loop:
        config = self.setup.config
        objective = Objective(self.setup.calling, self._teacher(training.phase.number), config.experts.teacher_weight)
        first, last = self.interval.reach(config.intervals.margin, len(self.setup.schedule.times))
        draws = self.setup.draws(self.name, config.experts, first, last, self.base_losses)
        preview = SampleGrids(self.setup, self.folder, self._macs(training.phase.number), self.interval, self.base)
        return Loop(self.name, self.folder, config.experts, config.run, draws, objective, self.setup.accelerator, preview)

    def _finish(self, training: Training) -> dict[str, Any]:
        """Save the network with its averaged weights, and the record."""
        ledger = training.ledger.add(self._spent(training), self._taught(training))
        number = training.phase.number
        model = training.model
        model.load_state_dict(training.ema.best(model))
        model.eval()
        record = {
            "schema": 1,
            "interval": self.interval.index,
            "fraction": self.fraction,
            "macs": self._macs(number),
            "time": self._time(number),
            "params": sum(parameter.numel() for parameter in model.parameters()),
            "steps": training.step,
            "ledger": ledger.to_dict(),
        }
        if self.setup.accelerator.is_main_process:
            save_expert(self.folder.network, model, self._cuts(number, model))
            write_json(self.folder.result, record)
        self.setup.accelerator.wait_for_everyone()
        return record

    def _cuts(self, count: int, model: nn.Module) -> Sequence[PruneResult]:
        """Return the cuts that were made, read back from the folder and traced again where that is needed."""
        results, before = [], self.setup.base_model(self.base)
        for number in range(1, count + 1):
            place = self.folder.cut(number)
            plan, surgery = PrunePlan.from_json(place.plan), read_surgery(place.surgery)
            graph = trace_like(before, self.setup.example_inputs, plan.options)
            ranking = Ranking.from_dict(read_json(place.ranking))
            perform(before, surgery)
            results.append(PruneResult(model, plan, ranking, make_report(graph, plan), surgery, graph))
        return results
