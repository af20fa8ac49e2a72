"""A run whose compute does not suffice fails before anything is spent."""

from __future__ import annotations

from proxyprune.diffusion.setup import Setup
from proxyprune.diffusion.stages.base_complexity import complexity_macs
from proxyprune.diffusion.stages.judging import compensation_macs, scoring_macs
from proxyprune.diffusion.stages.layout import check_size, decide
from proxyprune.diffusion.stages.trials import trial_macs
from proxyprune.diffusion.training.ledger import affordable_steps, split_allowance, training_macs
from proxyprune.errors import ComputeError


def check_compute(setup: Setup, looks: float) -> None:
    """Fail before the base is trained if the target is unreachable, measuring would exhaust the compute, or a stage gets no step.

    Args:
        setup: The run.
        looks: Passes of each calibration image through the network while the scorer works.

    Raises:
        TargetError: If the target cannot be met.
        ComputeError: If the base or an expert would not be trained for a single step.
        InputError: If the sampler cannot take so many steps.
    """
    config, compute = setup.config, setup.config.compute
    if affordable_steps(int(compute.base_share * setup.limit_macs), setup.base_macs, config.run.batch_size) < 1:
        raise ComputeError(
            f"{compute.base_share:.0%} of {compute.reference_steps} reference steps is less than one step of the base. Raise "
            "compute.reference_steps (--steps) or compute.base_share."
        )
    if setup.only_base:
        setup.sampler_snr()
        return
    left = setup.limit_macs - int(compute.base_share * setup.limit_macs)
    fractions = (min(config.budgets.sizes),) * config.intervals.count
    if {"measured", "complexity"} & {config.intervals.method, config.budgets.method}:
        setup.sampler_snr()
        check_size(setup, config.budgets.target)  # some expert will be as small
    else:
        fractions = decide(setup, None).budgets.fractions
    cost = 0
    if config.intervals.method == "measured":
        cost += training_macs(setup.base_macs, config.intervals.bins * config.intervals.images)
    if "complexity" in (config.intervals.method, config.budgets.method) and config.intervals.count > 1:
        cost += complexity_macs(setup)
    if config.budgets.method == "measured" and config.intervals.count > 1:
        cost += trial_macs(setup, looks)
    if cost >= left:
        raise ComputeError(
            f"Measuring would cost {cost:,} training MACs; {left:,} are left after the base, and experts need some of them. Measure with "
            f"less (budgets.trial_steps, now {config.trial_steps}; budgets.sizes, budgets.trial_images, pruning.calibration_batches, "
            "intervals.images), or raise compute.reference_steps."
        )
    allowances = split_allowance(left - cost, compute.expert_weights or (1.0,) * config.intervals.count)
    for index, (fraction, allowance) in enumerate(zip(fractions, allowances, strict=True)):
        judged = (scoring_macs(setup, looks) + compensation_macs(setup)) * config.pruning.rounds if fraction < 1.0 else 0
        if affordable_steps(max(0, allowance - judged), int(fraction * setup.base_macs), config.run.batch_size) < 1:
            raise ComputeError(
                f"Expert {index} would not be trained for a single step: its share is {allowance:,} training MACs, of which scoring "
                f"channels takes {judged:,}. Raise compute.reference_steps (--steps), or score with fewer images "
                "(pruning.calibration_batches, pruning.rounds)."
            )
