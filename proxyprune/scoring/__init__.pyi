from .brief import Attempt as Attempt, Brief as Brief, NoiseInterval as NoiseInterval
from .builtin.ablation import AblationScorer as AblationScorer
from .builtin.formula import FormulaScorer as FormulaScorer
from .builtin.magnitude import MagnitudeScorer as MagnitudeScorer, magnitude_l1 as magnitude_l1, magnitude_l2 as magnitude_l2
from .builtin.obs import ObsScorer as ObsScorer
from .builtin.random import RandomScorer as RandomScorer
from .builtin.taylor import TaylorScorer as TaylorScorer
from .builtin.torch_pruning import TorchPruningScorer as TorchPruningScorer
from .contract import NEEDS as NEEDS, Scorer as Scorer, ScoringContext as ScoringContext, model_given as model_given
from .ranking import Ranking as Ranking
from .registry import ScorerInfo as ScorerInfo, find as find, scorers as scorers
from .run_scorer import check_ranking as check_ranking, score as score
from .tools.block_influence import REMOVAL_NOTE as REMOVAL_NOTE, BlockInfluence as BlockInfluence
from .tools.calibration import Calibration as Calibration, untouched as untouched
from .tools.channel_importance import group_importance as group_importance
from .tools.gradients import differentiable_parameters as differentiable_parameters, weight_times_gradient as weight_times_gradient
from .tools.hooks import Hook as Hook, hooked as hooked, module_of as module_of
from .tools.nested_inputs import call_arguments as call_arguments, mapped as mapped, tensors_of as tensors_of
from .tools.scale import half_saturation as half_saturation, significant as significant
from .tools.weights import parameters_by_block as parameters_by_block, parameters_of as parameters_of
