from .config.run_config import (
    BudgetConfig as BudgetConfig,
    ComputeConfig as ComputeConfig,
    DataConfig as DataConfig,
    IntervalConfig as IntervalConfig,
    NoiseConfig as NoiseConfig,
    PruningConfig as PruningConfig,
    RunConfig as RunConfig,
    StageConfig as StageConfig,
    StepAdaptiveConfig as StepAdaptiveConfig,
)
from .data.write_images import beside as beside, grid as grid, save_picture as save_picture
from .evaluation.evaluate import Evaluation as Evaluation, evaluate as evaluate
from .evaluation.features import load_features as load_features
from .process.intervals import Interval as Interval, Intervals as Intervals
from .process.noise_schedule import NoiseSchedule as NoiseSchedule
from .sampling.pipeline import StepAdaptivePipeline as StepAdaptivePipeline
from .stages.budgets import Budgets as Budgets, allocate as allocate
from .stages.recovery import DamageRecovery as DamageRecovery, Measurement as Measurement
from .trainer import StepAdaptiveTrainer as StepAdaptiveTrainer
from .training.ledger import Ledger as Ledger
