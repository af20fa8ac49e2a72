"""The number of query heads that share a key head, as attention modules of transformers state it: `num_key_value_groups`.

A call without a mask only compares it with one; a call with a mask, as for a batch with padding or a cache of fixed size, repeats the keys
by it. Where the only key head stays and query heads leave, the number follows them, as the attention op of the module shows.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from proxyprune.surgery.prediction import Prediction
from proxyprune.surgery.surgery import AttributeChange
from proxyprune.tracing.nodes import op_name, output_shapes, tensor_argument

_ATTRIBUTE = "num_key_value_groups"


def shared_heads(model: nn.Module, prediction: Prediction) -> Iterator[AttributeChange]:
    """Yield the changes of that number, for attention modules in which it was the ratio of heads and the ratio changes."""
    program = prediction.graph.program
    for node in program.calls:
        if op_name(node) != "aten.scaled_dot_product_attention" or prediction.is_removed(node):
            continue
        owner = program.owners[node.name]
        stated = vars(model.get_submodule(owner)).get(_ATTRIBUTE)
        query, key = tensor_argument(node, "query"), tensor_argument(node, "key")
        before = tuple(output_shapes(tensor)[0][-3] for tensor in (query, key))
        after = tuple(prediction.output_shape(tensor, 0)[-3] for tensor in (query, key))
        if type(stated) is int and before[0] == stated * before[1] and after[0] != stated * after[1] and after[0] % after[1] == 0:
            yield AttributeChange(owner, (_ATTRIBUTE,), stated, after[0] // after[1])
