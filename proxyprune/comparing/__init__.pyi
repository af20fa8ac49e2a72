from .run_comparison import compare as compare
from .values import Case as Case, Cell as Cell, Comparison as Comparison, Scoring as Scoring, Summary as Summary
