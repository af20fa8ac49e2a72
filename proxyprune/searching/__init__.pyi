from .proposer import History as History, Proposal as Proposal, Proposer as Proposer
from .proposers.by_name import proposer_named as proposer_named
from .proposers.formula import FormulaProposer as FormulaProposer
from .round import Round as Round
from .run_search import SearchResult as SearchResult, search as search
