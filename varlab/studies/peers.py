"""What a user would take instead of varlab: the same work done by a loop and by ``torch.func``, for the benchmark."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

Moments = tuple[Tensor, Tensor]


def _log_prob(policy: nn.Module, theta: dict[str, Tensor], obs: Tensor, action: Tensor) -> Tensor:
    return functional_call(policy, theta, (obs,)).log_prob(action)


def _flat(theta: dict[str, Tensor]) -> Tensor:
    return torch.cat([x.flatten(1) for x in theta.values()], 1)


def backward_loop(policy: nn.Module, obs: Tensor, action: Tensor, phi: Tensor) -> Moments:
    """One backward pass per trajectory and Φ, as introductory code writes it.

    Args:
        policy: categorical policy.
        obs: [N, T, d].
        action: [N, T].
        phi: [N, K, T].

    Returns:
        First and second moment [K, P].
    """
    theta = list(policy.parameters())
    rows = []
    for o, a, f in zip(obs, action, phi, strict=True):
        g = [torch.autograd.grad((policy(o).log_prob(a) * w).sum(), theta) for w in f]
        rows.append(torch.stack([torch.cat([x.flatten() for x in one]) for one in g]))
    first, second = _sums(torch.stack(rows))
    return first / len(obs), second / len(obs)


def vmap_grad(policy: nn.Module, obs: Tensor, action: Tensor, phi: Tensor, chunk: int) -> Moments:
    """``vmap(grad)`` over trajectories, one call per Φ. Arguments as in :func:`backward_loop`, ``chunk`` trajectories a call.

    Returns:
        First and second moment [K, P].
    """
    theta = {k: p.detach() for k, p in policy.named_parameters()}

    def loss(t: dict[str, Tensor], o: Tensor, a: Tensor, f: Tensor) -> Tensor:
        return (_log_prob(policy, t, o, a) * f).sum()

    each = vmap(grad(loss), in_dims=(None, 0, 0, 0))
    first, second = [], []
    for k in range(phi.shape[1]):
        pieces = zip(obs.split(chunk), action.split(chunk), phi[:, k].split(chunk), strict=True)
        one, two = zip(*[_sums(_flat(each(theta, o, a, f))) for o, a, f in pieces], strict=True)
        first.append(sum(one))
        second.append(sum(two))
    return torch.stack(first) / len(obs), torch.stack(second) / len(obs)


def vmap_nested(policy: nn.Module, obs: Tensor, action: Tensor, phi: Tensor, chunk: int) -> Moments:
    """One vector-Jacobian product per trajectory, mapped over Φ inside and over trajectories outside.

    Returns:
        First and second moment [K, P].
    """
    theta = {k: p.detach() for k, p in policy.named_parameters()}

    def one(o: Tensor, a: Tensor, f: Tensor) -> Tensor:
        _, pull = vjp(lambda t: _log_prob(policy, t, o, a), theta)
        return _flat(vmap(lambda w: pull(w)[0])(f))

    pieces = zip(obs.split(chunk), action.split(chunk), phi.split(chunk), strict=True)
    first, second = zip(*[_sums(vmap(one)(o, a, f)) for o, a, f in pieces], strict=True)
    return sum(first) / len(obs), sum(second) / len(obs)


def _sums(g: Tensor) -> Moments:
    return g.sum(0).double(), g.square().sum(0).double()


@torch.no_grad()
def one_environment_loop(env_id: str, policy: Callable[[Tensor], torch.distributions.Distribution], steps: int) -> int:
    """Step one environment with one observation at a time.

    Args:
        env_id: Gymnasium id.
        policy: gives a Distribution.
        steps: at least so many environment steps are taken.

    Returns:
        Steps taken, whole episodes.
    """
    env = gymnasium.make(env_id)
    taken = 0
    while taken < steps:
        obs, _ = env.reset(seed=taken)
        over = False
        while not over:
            action = policy(torch.as_tensor(obs).unsqueeze(0)).sample().item()
            obs, _, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
            taken += 1
    return taken
