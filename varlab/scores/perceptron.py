"""Forward and backward pass of a plain perceptron, some rows at a time: what one layer makes is still in cache for the next.

    h_0 = x,   z_l = W_l h_l + b_l,   h_{l+1} = f(z_l),      δ_l = ∂ log π / ∂ z_l,   δ_{l−1} = (W_lᵀ δ_l) ∘ f'(z_{l−1}),

where f' is a function of h alone: 1 − h² of tanh, 1{h > 0} of a ReLU. Autograd does the same, layer by layer over all rows, and
needs twice the time. Source of the recursion: Learning representations by back-propagating errors (Rumelhart, Hinton, Williams,
1986).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from varlab.policies.networks import NetworkPolicy
from varlab.scores.base import slices

#: Numbers of one layer that are worked on at once.
NUMBERS = 2**17


def _tanh(z: Tensor) -> None:
    z.tanh_()


def _tanh_back(delta: Tensor, h: Tensor) -> None:
    torch.ops.aten.tanh_backward.grad_input(delta, h, grad_input=delta)


def _relu(z: Tensor) -> None:
    z.relu_()


def _relu_back(delta: Tensor, h: Tensor) -> None:
    torch.ops.aten.threshold_backward.grad_input(delta, h, 0, grad_input=delta)


#: Activation → f in place, and multiplication by f' in place.
ACTIVATIONS = {nn.Tanh: (_tanh, _tanh_back), nn.ReLU: (_relu, _relu_back)}


class Perceptron:
    """Linear layers with activations between them.

    Attributes:
        layers: the linear layers, first one first.
    """

    def __init__(self, net: nn.Sequential) -> None:
        """Take the layers of ``net``, which :meth:`of` has looked at."""
        self.layers = [module for module in net if isinstance(module, nn.Linear)]
        self.activations = [ACTIVATIONS[type(module)] for module in net if not isinstance(module, nn.Linear)]
        self.rows = max(1, NUMBERS // max(layer.out_features for layer in self.layers))

    @classmethod
    def of(cls, policy: nn.Module) -> Perceptron | None:
        """Return the network of a policy of this package, or None where it is no such perceptron or does more than it."""
        net = getattr(policy, "net", None)
        if type(policy).forward is not NetworkPolicy.forward or type(net) is not nn.Sequential or len(net) % 2 == 0:
            return None
        kinds = [type(module) for module in net]
        plain = all(kind is nn.Linear for kind in kinds[0::2]) and all(kind in ACTIVATIONS for kind in kinds[1::2])
        hooked = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())
        return cls(net) if plain and not hooked else None

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the inputs h_l [n, in] of every layer and the output [n, out] of the last, for x [n, d]."""
        made = [x.new_empty(len(x), layer.out_features) for layer in self.layers]
        for rows in slices(len(x), self.rows):
            h = x[rows]
            for i, (layer, out) in enumerate(zip(self.layers, made, strict=True)):
                z = out[rows]
                if layer.bias is None:
                    torch.mm(h, layer.weight.T, out=z)
                else:
                    torch.addmm(layer.bias, h, layer.weight.T, out=z)
                if i < len(self.activations):
                    self.activations[i][0](z)
                h = z
        return [x, *made[:-1]], made[-1]

    @torch.no_grad()
    def backward(self, inputs: list[Tensor], delta: Tensor) -> list[Tensor]:
        """Return δ_l [n, out] of every layer.

        Args:
            inputs: h_l of every layer.
            delta: [n, out] ∂ log π / ∂ output.

        Returns:
            One tensor for each layer, the first one first.
        """
        found = [h.new_empty(h.shape) for h in inputs[1:]] + [delta]
        for rows in slices(len(delta), self.rows):
            for i in range(len(self.layers) - 1, 0, -1):
                d = found[i - 1][rows]
                torch.mm(found[i][rows], self.layers[i].weight, out=d)
                self.activations[i - 1][1](d, inputs[i][rows])
        return found
