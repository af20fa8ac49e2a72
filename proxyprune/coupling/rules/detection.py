"""Ops of torchvision: what selects boxes, and what reads a feature map at boxes or at offsets."""

from __future__ import annotations

from torch.fx import Node

from proxyprune.coupling.outcome import Outcome
from proxyprune.coupling.rules.selections import selection
from proxyprune.coupling.rules.walk import Rule, Walk, fixed, kept_whole
from proxyprune.tracing.nodes import output_shapes, tensor_argument


def region_pooling(walk: Walk, node: Node) -> Outcome:
    """roi_align(x, boxes, ...), roi_pool: x [n, c, h, w] is read at each box, [boxes, c, height, width]; channels go on."""
    source, boxes = tensor_argument(node, 0), tensor_argument(node, 1)
    batch, channels, *spatial = walk.axes(source)
    walk.pin((batch, *spatial), node, "is a spatial dimension in")
    walk.pin(walk.axes(boxes), node, "holds boxes for")
    outputs = tuple((None, channels, *fixed(shape[2:])) for shape in output_shapes(node))
    return Outcome(outputs=outputs, zero=walk.zero(source))


def position_sensitive(walk: Walk, node: Node) -> Outcome:
    """ps_roi_align, ps_roi_pool: every channel belongs to one place in a box."""
    return kept_whole(walk, node, "belongs to a place in a box in")


RULES: dict[str, Rule] = {
    "torchvision.nms": selection,
    **dict.fromkeys(("torchvision.roi_align", "torchvision.roi_pool"), region_pooling),
    **dict.fromkeys(("torchvision.ps_roi_align", "torchvision.ps_roi_pool"), position_sensitive),
}
