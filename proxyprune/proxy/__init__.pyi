from .scorer import (
    AnthropicScorer as AnthropicScorer,
    LLMScorer as LLMScorer,
    LocalScorer as LocalScorer,
    OpenAIScorer as OpenAIScorer,
    Preview as Preview,
)
from .service.exchange import Provider as Provider, Reply as Reply, Request as Request, Turn as Turn, Usage as Usage
from .session.events import Advised as Advised, Asked as Asked, Finished as Finished, Planned as Planned
from .session.price import CostEstimate as CostEstimate
from .session.settings import LLMSettings as LLMSettings
