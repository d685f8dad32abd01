"""Scores of modules made of linear layers, embeddings and broadcast parameters, as outer products.

For a linear layer the score of step t is δ_t ⊗ h_t: the back-propagated signal times the layer's input. One forward and one
backward pass give δ and h for every layer, and from these every choice of φ is read off:

    weight  g = Σ_t φ_t δ_t h_tᵀ,    Gram (δδᵀ) ∘ (hhᵀ)
    bias    g = Σ_t φ_t δ_t,         Gram δδᵀ
    embedding row s   Σ_{t: s_t = s} φ_t δ_t,    Gram (δδᵀ) ∘ 1{s_t = s_u}

(:mod:`varlab.scores.outer` and :mod:`varlab.scores.grams`).

Source of the factorisation: Efficient Per-Example Gradient Computations (Goodfellow, 2015); here the sum runs inside a
trajectory and over many φ at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from varlab.policies.base import Broadcast, features, log_prob, parameters
from varlab.scores import grams
from varlab.scores.base import CACHE_BYTES, ScoreMap, StepScores, Workspace, products_of, slices
from varlab.scores.outer import Claim, Factor, Piece, gradient, pieces, written
from varlab.scores.perceptron import Perceptron

#: Numbers of Grams that are worked on at once.
GRAM_NUMBERS = 2**19
#: Numbers written on the way to a sum of gradients, at once.
SUM_NUMBERS = 2**22


#: Module classes that factors understand, and the names of their parameters. Subclasses may compute something else.
CLAIMABLE = {nn.Linear: ("weight", "bias"), nn.Embedding: ("weight", None), Broadcast: ("value", None)}


class FactoredBatch(StepScores):
    """Outer-product factors of C trajectories."""

    def __init__(self, factors: list[Factor], pieces: list[Piece], num_parameters: int, work: Workspace) -> None:
        """Keep the factors and the list of parameter tensors."""
        self.factors, self.pieces, self.num_parameters, self.work = factors, pieces, num_parameters, work

    def tiles(self, phi: Tensor, multiple: int = 1) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Give gradients one parameter tensor and a few trajectories at a time."""
        c, k, t = phi.shape
        for piece in self.pieces:
            factor = self.factors[piece.factor]
            for rows in slices(c, CACHE_BYTES // (phi.element_size() * written(piece, factor, k, t)), multiple):
                yield rows, piece.index, gradient(piece, factor.of(rows), phi[rows], self.work)

    def apply_sum(self, phi: Tensor) -> Tensor:
        """Return Σ_i g_i [K, P]: the steps of all trajectories are taken for those of one, some thousands at a time."""
        k, by_step = phi.shape[1], phi.transpose(0, 1).flatten(1)  # [K, C·T]
        total = phi.new_zeros(k, self.num_parameters)
        for piece in self.pieces:
            factor = self.factors[piece.factor].flat()
            for steps in slices(by_step.shape[1], SUM_NUMBERS // written(piece, factor, k, 1)):
                total[:, piece.index] += gradient(piece, factor.of(slice(None), steps), by_step[None, :, steps], self.work)[0]
        return total

    def gram(self, join: int = 1) -> Tensor:
        """Return Σ over parameter tensors of their Grams, [C / join, join · T, join · T]."""

        def joined(x: Tensor) -> Tensor:
            return x.reshape(x.shape[0] // join, -1, *x.shape[2:])

        deltas = [(joined(f.delta),) * 2 for f in self.factors]
        beside = [None if x is None else (joined(x),) * 2 for x in grams.inputs(self.factors)]
        return grams.gram(deltas, beside, Workspace())

    def products(self, phi: Tensor, way: str = "cheaper") -> tuple[Tensor, Tensor]:
        """Return ‖g_i‖² [C, K] and ⟨g_2j, g_2j+1⟩ [C / 2, K].

        Args:
            phi: [C, K, T], C even.
            way: through ``grams``, through ``gradients``, or the ``cheaper`` of the two.

        Returns:
            The products.
        """
        _, k, t = phi.shape
        through_grams, through_gradients = grams.cost(self.factors, k, t)
        if way == "gradients" or way == "cheaper" and through_gradients <= through_grams:
            return products_of(self, phi)
        return grams.products(self.factors, phi, self.work, max(1, GRAM_NUMBERS // (3 * t * t + k * t)))

    def rows(self, index: slice) -> FactoredBatch:
        """Return the scores of some of the trajectories; buffers are shared."""
        return FactoredBatch([f.of(index) for f in self.factors], self.pieces, self.num_parameters, self.work)


class FactoredScores(ScoreMap):
    """Score map of a module all of whose parameters are claimed by exactly one factor."""

    kind = "factored"

    def __init__(self, policy: nn.Module) -> None:
        """Claim the parameters of ``policy``.

        Raises:
            NotFactored: naming the parameter that no factor, or more than one, would cover.
        """
        self.policy, self.work = policy, Workspace()
        self.claims = claims(policy)
        self.pieces = pieces(self.claims)
        self.perceptron = Perceptron.of(policy)
        self.num_parameters = sum(p.numel() for p in parameters(policy).values())

    def at(self, obs: Tensor, action: Tensor) -> FactoredBatch:
        """Run one forward and one backward pass over all steps.

        Args:
            obs: [C, T, ...].
            action: [C, T] or [C, T, d].

        Returns:
            Factors of every claimed module.

        Raises:
            NotFactored: if a claimed module is called more than once, never, not with one row per step, or changed in place.
        """  # noqa: DOC502
        c, t = obs.shape[:2]
        rows, taken = obs.flatten(0, 1), action.flatten(0, 1)
        if self.perceptron is None:
            found = self._traced(lambda: log_prob(self.policy(rows), taken), self.claims, c * t)
        else:
            found = self._through_perceptron(rows, taken)
        factors = []
        for claim in self.claims:
            h, delta = found[claim.module]
            inputs = None if isinstance(claim.module, Broadcast) else h.reshape(c, t, *h.shape[1:])
            if isinstance(claim.module, nn.Embedding):
                inputs = inputs.long()
            factors.append(Factor(claim, delta.view(c, t, -1), inputs))
        return FactoredBatch(factors, self.pieces, self.num_parameters, self.work)

    def _through_perceptron(self, obs: Tensor, action: Tensor) -> dict[nn.Module, tuple[Tensor, Tensor]]:
        """Return module → (h, δ), with autograd for the distribution alone."""
        policy, layers = self.policy, self.perceptron.layers
        inputs, out = self.perceptron.forward(features(obs, policy.num_classes, layers[0].weight.dtype))
        out.requires_grad_()
        others = [claim for claim in self.claims if claim.module not in layers]
        end: list[Tensor] = []
        found = self._traced(lambda: log_prob(policy.distribution(out), action), others, len(obs), out, end)
        deltas = self.perceptron.backward(inputs, end[0])
        return found | dict(zip(layers, zip(inputs, deltas, strict=True), strict=True))

    def _traced(
        self, function: Callable[[], Tensor], claims: list[Claim], n: int, also: Tensor | None = None, end: list[Tensor] = ()
    ) -> dict[nn.Module, tuple[Tensor, Tensor]]:
        """Return module → (h, δ) by hooks and autograd.

        Args:
            function: gives log π [n].
            claims: of the modules to look at.
            n: rows.
            also: [n, ...] whose gradient is wanted too.
            end: takes it.

        Returns:
            Input of each module and ∂ log π / ∂ output.

        Raises:
            NotFactored: if a module is called more than once, never, not with one row per step, or changed in place.
        """
        calls: list[list[tuple[Tensor, Tensor]]] = [[] for _ in claims]
        versions: list[list[tuple[int, int]]] = [[] for _ in claims]

        def keep(i: int):  # noqa: ANN202
            def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], out: Tensor) -> None:
                h = args[0] if args else next(iter(kwargs.values()))
                calls[i].append((h.detach(), out))
                versions[i].append((h._version, out._version))

            return hook

        hooks = [claim.module.register_forward_hook(keep(i), with_kwargs=True) for i, claim in enumerate(claims)]
        try:
            with torch.enable_grad():
                total = function().sum()
        finally:
            for hook in hooks:
                hook.remove()
        for claim, made, before in zip(claims, calls, versions, strict=True):
            if len(made) != 1 or made[0][1].dim() != 2 or made[0][1].shape[0] != n:
                raise NotFactored(
                    claim.module, self.policy, f"its module is called {len(made)} times or not with one row per step"
                )
            # Found by structure, not by numbers: an inplace ReLU changes nothing where all of its inputs are positive.
            if before[0] != tuple(x._version for x in made[0]):
                raise NotFactored(claim.module, self.policy, "input or output of its module is changed in place")
        outs = [made[0][1] for made in calls] + ([] if also is None else [also])
        reached = [out for out in outs if out.requires_grad]  # a module called under no_grad has no scores
        found = iter(torch.autograd.grad(total, reached, allow_unused=True) if total.requires_grad else [None] * len(reached))
        deltas = [next(found) if out.requires_grad else None for out in outs]
        deltas = [torch.zeros_like(out) if delta is None else delta for out, delta in zip(outs, deltas, strict=True)]
        if also is not None:
            end.append(deltas.pop())
        return {claim.module: (made[0][0], delta) for claim, made, delta in zip(claims, calls, deltas, strict=True)}


class NotFactored(Exception):
    """Raised where the outer-product form does not cover a module; the message names the parameter that is the reason."""

    def __init__(self, culprit: nn.Module | str, policy: nn.Module, reason: str) -> None:
        """Say which parameter, and why."""
        if isinstance(culprit, nn.Module):
            inside = {id(p) for p in culprit.parameters()}
            culprit = next((n for n, p in policy.named_parameters() if id(p) in inside), "a parameter")
        super().__init__(f"parameter '{culprit}': {reason}")


def _plain(module: nn.Module) -> bool:
    """Whether a module of a claimable class has no option that changes its gradient."""
    if not isinstance(module, nn.Embedding):
        return True
    return module.padding_idx is None and module.max_norm is None and not (module.scale_grad_by_freq or module.sparse)


def claims(policy: nn.Module) -> list[Claim]:
    """Return the claimable modules of ``policy`` with the positions of their parameters in θ.

    Raises:
        NotFactored: if a parameter with requires_grad is claimed by no module or by two.
    """
    wanted = parameters(policy)
    device = next(iter(wanted.values())).device
    position, start = {}, 0
    for p in wanted.values():
        position[id(p)] = torch.arange(start, start + p.numel(), device=device).view(p.shape)
        start += p.numel()
    found, times = [], dict.fromkeys(position, 0)
    for module in policy.modules():
        if type(module) not in CLAIMABLE or not _plain(module):
            continue
        names = CLAIMABLE[type(module)]
        held = [getattr(module, n) if n else None for n in names]
        index = [position.get(id(p)) if p is not None else None for p in held]
        for p in held:
            if p is not None and id(p) in times:
                times[id(p)] += 1
        if any(i is not None for i in index):
            found.append(Claim(module, *index))
    for name, p in wanted.items():
        if times[id(p)] != 1:
            reason = "no linear layer, embedding or Broadcast holds it" if times[id(p)] == 0 else "two modules share it"
            raise NotFactored(name, policy, reason)
    return found
