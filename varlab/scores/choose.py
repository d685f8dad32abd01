"""Which score map serves a policy: factored where a probe proves it right, functional otherwise."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from varlab import checks
from varlab.policies.base import log_prob, parameters
from varlab.scores.base import ScoreMap
from varlab.scores.factored import FactoredScores, NotFactored
from varlab.scores.functional import FunctionalScores

log = logging.getLogger(__name__)

#: Relative disagreement that rounding cannot explain.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


def make(policy: nn.Module, obs: Tensor, action: Tensor, env: str = "the environment") -> ScoreMap:
    """Return the score map of ``policy``.

    The factored form is taken if every parameter is claimed by one factor and its sum of scores agrees with autograd on a
    few steps; a parameter used in another way (functionally, twice, changed in place) shows there. Otherwise the whole
    module takes ``torch.func``, and a log line names the parameter that was the reason.

    Args:
        policy: at fixed θ, in evaluation mode.
        obs: [m, ...] a few observations.
        action: [m] or [m, d] actions taken there.
        env: name for messages.

    Returns:
        The score map.

    Raises:
        InputError: if the policy's log-probability of one row depends on the other rows.
    """
    check_rows(policy, obs, action, env)
    try:
        scores = FactoredScores(policy)
        _probe(scores, obs, action)
    except NotFactored as reason:
        log.info("scores of %s come from torch.func because of %s", type(policy).__name__, reason)
        return FunctionalScores(policy)
    return scores


def check_rows(policy: nn.Module, obs: Tensor, action: Tensor, env: str) -> None:
    """Check that log π(a | s) of each row is the same alone and in a batch.

    Raises:
        InputError: if it is not.
    """
    with torch.no_grad():
        together = log_prob(policy(obs), action, env)
        if together.shape != obs.shape[:1]:
            raise checks.InputError(
                f"One log-probability per observation was expected from the policy on {env}, but {obs.shape[0]} observations "
                f"gave shape {tuple(together.shape)}; let forward treat the first axis as the batch."
            )
        alone = torch.cat([log_prob(policy(obs[i : i + 1]), action[i : i + 1], env) for i in range(obs.shape[0])])
    if not torch.allclose(together, alone, rtol=TOLERANCE[together.dtype], atol=TOLERANCE[together.dtype]):
        worst = int((together - alone).abs().argmax())
        raise checks.InputError(
            f"A policy that treats every observation by itself was expected on {env}, but log π of row {worst} is "
            f"{float(alone[worst]):.6g} alone and {float(together[worst]):.6g} in a batch of {obs.shape[0]}; take out what mixes "
            "rows (batch statistics, dropout, recurrence)."
        )


def _probe(scores: FactoredScores, obs: Tensor, action: Tensor) -> None:
    """Compare one weighted sum of scores with autograd; raise NotFactored naming the worst parameter."""
    theta = parameters(scores.policy)
    dtype = next(iter(theta.values())).dtype
    phi = torch.linspace(-1.0, 2.0, obs.shape[0], dtype=dtype, device=obs.device)
    mine = scores.at(obs.unsqueeze(0), action.unsqueeze(0)).apply_sum(phi.view(1, 1, -1))[0]
    with torch.enable_grad():
        total = (phi * log_prob(scores.policy(obs), action)).sum()
        truth = torch.autograd.grad(total, list(theta.values()), allow_unused=True)
    size = max([float(g.abs().max()) for g in truth if g is not None], default=0.0)
    start = 0
    for (name, p), g in zip(theta.items(), truth, strict=True):
        part, start = mine[start : start + p.numel()].view(p.shape), start + p.numel()
        if float((part - (0 if g is None else g)).abs().max()) > TOLERANCE[dtype] * max(size, 1e-30):
            raise NotFactored(name, scores.policy, "it is used in more ways than its module's one call")
