from .axes import Axis as Axis, AxisLabels as AxisLabels
from .outcome import Outcome as Outcome, Term as Term
from .rules.register import (
    CostRule as CostRule,
    RegisteredRule as RegisteredRule,
    register_rule as register_rule,
    registered_rules as registered_rules,
)
from .rules.walk import (
    Rule as Rule,
    Walk as Walk,
    broadcast as broadcast,
    kept_whole as kept_whole,
    repeat_each as repeat_each,
    repeat_whole as repeat_whole,
    sizes_of as sizes_of,
)
