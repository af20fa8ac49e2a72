from .api import compensate as compensate, trace as trace
from .applying.apply import apply_plan as apply_plan
from .applying.training_state import carry_optimizer as carry_optimizer, carry_state as carry_state
from .comparing import Comparison as Comparison, compare as compare
from .compensation.refit import CompensationSettings as CompensationSettings
from .compensation.report import CompensationReport as CompensationReport
from .coupling.groups import ChannelGroup as ChannelGroup, Member as Member
from .coupling.options import TraceKeywords as TraceKeywords
from .coupling.rules.register import RegisteredRule as RegisteredRule, register_rule as register_rule
from .errors import ProxyPruneError as ProxyPruneError
from .graph.cost import CostModel as CostModel
from .graph.model_graph import ModelGraph as ModelGraph
from .graph.structure import Block as Block
from .measuring.held_out import DataKeywords as DataKeywords, Recovery as Recovery
from .measuring.network_times import with_times as with_times
from .measuring.timing import Timing as Timing
from .planning.plan import PrunePlan as PrunePlan
from .planning.planner import make_plan as make_plan
from .planning.request import CutKeywords as CutKeywords, PlanKeywords as PlanKeywords
from .pruning.advice import Advice as Advice
from .pruning.prune import prune as prune
from .result import Losses as Losses, PruneResult as PruneResult, Report as Report, Trial as Trial, Trials as Trials
from .saving.lora_adapter import CarriedLora as CarriedLora, carry_lora as carry_lora
from .saving.network_folder import load as load, save as save
from .saving.onnx_file import save_onnx as save_onnx
from .saving.plain_folder import save_pretrained as save_pretrained
from .scoring import Ranking as Ranking, Scorer as Scorer, ScoringContext as ScoringContext, score as score, scorers as scorers
from .searching import SearchResult as SearchResult, search as search
from .surgery.plain_weights import PlainWeights as PlainWeights, plain_weights as plain_weights
from .surgery.surgery import Surgery as Surgery
from .tracing.model_call import TrainingCall as TrainingCall
from .tracing.parts import inputs_of as inputs_of

__version__: str
