from .fake_llm.fake_server import FakeLLMServer as FakeLLMServer
from .fake_llm.faults import (
    CutOff as CutOff,
    CutPrompt as CutPrompt,
    Dribble as Dribble,
    Drop as Drop,
    Empty as Empty,
    Html as Html,
    Refusal as Refusal,
    Says as Says,
    Slow as Slow,
    Status as Status,
    Truncated as Truncated,
)
from .fake_llm.received_request import ReceivedRequest as ReceivedRequest, by_place as by_place
from .rule_contract import RuleContractError as RuleContractError, check_rule as check_rule
from .scorer_contract import (
    CheckResult as CheckResult,
    ContractReport as ContractReport,
    Network as Network,
    ScorerContractError as ScorerContractError,
    attention_network as attention_network,
    check_scorer as check_scorer,
    residual_network as residual_network,
)
from .simulated import SimulatedProxy as SimulatedProxy, SimulatedScorer as SimulatedScorer, predicted_tau as predicted_tau
