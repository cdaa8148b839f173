"""Linear layers of a teacher that is computed in float32 on a CPU: weights in oneDNN's own order, laid out once.

PyTorch's plain layer multiplies by MKL, which lays its operands out anew at every call, and uses the widest vectors on the
processors of one maker alone. This is what ``torch.compile`` makes of a frozen model, without a compiler.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Tokens of a product that the order is chosen for; of others the products are the same, in the same order.
TOKENS = 512


class PackedLinear(nn.Linear):
    """A linear layer whose weight may be held in oneDNN's order, and nowhere else."""

    @classmethod
    def of(cls, layer: nn.Linear) -> PackedLinear:
        """The same layer, its weight in whichever order it is."""
        made = cls(layer.in_features, layer.out_features, bias=False, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        return made.eval()

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Linear``."""
        if not self.weight.is_mkldnn:
            return super().forward(input)
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]


def product(input: Tensor, weight: Tensor) -> Tensor:
    """``input @ weight.T``, (..., n), of (..., d) and a weight (n, d) in its plain order; in float32 on a CPU without gradients.

    For a weight that is used in slices, or whose plain order something else needs: oneDNN lays it out at every call, and
    is then still faster than MKL.
    """
    if input.device.type != "cpu" or input.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return input @ weight.T
    return torch.ops.mkldnn._linear_pointwise(input, weight, None, "none", [], "")  # type: ignore[no-any-return]


def make_packable(blocks: Iterable[nn.Module]) -> None:
    """Have the linear layers of blocks take weights in either order; their weights need not be there."""
    for block in blocks:
        for parent in list(block.modules()):
            for name, child in parent.named_children():
                # What a family makes of the layer may do something else besides.
                if type(child) is nn.Linear:
                    setattr(parent, name, PackedLinear.of(child))


def pack(block: nn.Module) -> None:
    """Lay out the weights of a block, in place; the plain ones are let go of."""
    for module in block.modules():
        if isinstance(module, PackedLinear):
            ordered = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), TOKENS)
            module.weight = nn.Parameter(ordered, requires_grad=False)
