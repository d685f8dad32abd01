"""What a policy is: any ``nn.Module`` whose forward gives a torch Distribution over actions, one row per observation."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from varlab import checks, rng


class Broadcast(nn.Module):
    """A parameter used directly, the same for every observation (such as log σ): ``forward`` repeats it [n, d].

    As a module of its own it lets the factored scores see ∂ log π / ∂ parameter step by step.
    """

    def __init__(self, value: Tensor) -> None:
        """Make ``value`` [d] a parameter."""
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, like: Tensor) -> Tensor:
        """Return the parameter repeated for each row of ``like`` [n, ...]."""
        return self.value.expand(*like.shape[:-1], *self.value.shape)


def categorical(logits: Tensor) -> Categorical:
    """Return the Categorical of unnormalised ``logits`` [..., A].

    It is normalised by ``log_softmax``, which for few actions is several times faster than the subtraction of a
    ``logsumexp`` in torch's constructor, and as exact.
    """
    made = Categorical.__new__(Categorical)
    made.logits = made._param = torch.log_softmax(logits, -1)
    made._num_events = logits.shape[-1]
    Distribution.__init__(made, logits.shape[:-1], validate_args=False)
    return made


def log_prob(distribution: Distribution, action: Tensor, env: str = "the environment") -> Tensor:
    """Return log π(a | s) [n], summed over action dimensions.

    Args:
        distribution: n rows; may be factorised over action dimensions (batch shape [n, d]).
        action: [n] or [n, d].
        env: name for messages.

    Returns:
        [n] log-probabilities.

    Raises:
        InputError: if it is no distribution, or does not fit the actions.
    """
    if not isinstance(distribution, Distribution):
        raise checks.InputError(
            f"A policy whose forward gives a torch Distribution was expected, but it gave {type(distribution).__name__}; "
            "wrap its output, for example torch.distributions.Categorical(logits=output)."
        )
    try:
        value = distribution.log_prob(action)
    except (ValueError, RuntimeError) as error:
        raise checks.InputError(
            f"A policy distribution over actions of shape {tuple(action.shape[1:])} was expected for {env}, but its log_prob "
            f"refused them: {str(error).splitlines()[0]}; give the last layer one output per action."
        ) from error
    return value.flatten(1).sum(1) if value.dim() > 1 else value


def sample(distribution: Distribution, generator: torch.Generator) -> Tensor:
    """Draw one action per row with a given generator.

    torch distributions draw from the global generator only; the common families are drawn here by their definitions, any
    other (their subclasses too, which may draw otherwise) through a fork of the global state that is restored afterwards.

    Args:
        distribution: n rows.
        generator: source of randomness.

    Returns:
        [n] or [n, d] actions.
    """
    inner = distribution.base_dist if type(distribution) is Independent else distribution
    if type(inner) is Categorical and inner is distribution:
        cumulative = inner.probs.cumsum(-1)
        u = torch.rand(cumulative.shape[:-1], generator=generator, device=cumulative.device, dtype=torch.float64)
        # In units of the rounded total, so that a last action of probability 0 (a masked one) is never drawn.
        return (u.unsqueeze(-1) * cumulative[..., -1:] >= cumulative[..., :-1]).sum(-1)
    if type(inner) is Normal:
        noise = torch.randn(inner.loc.shape, generator=generator, device=inner.loc.device, dtype=inner.loc.dtype)
        return torch.addcmul(inner.loc, inner.scale, noise)
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    with rng.global_generator(seed, generator.device):
        return distribution.sample()


class CategoricalRows:
    """Draws from rows of one Categorical again and again, as :func:`sample` would: what a softmax table needs in every step."""

    def __init__(self, distribution: Categorical) -> None:
        """Sum up the probabilities of every row once.

        Args:
            distribution: S rows over A actions.
        """
        cumulative = distribution.probs.cumsum(-1).double()
        self.distribution, self.total = distribution, cumulative[:, -1].contiguous()
        self.steps = cumulative[:, :-1].T.contiguous()  # [A − 1, S]

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one action for each of the rows named.

        Args:
            rows: [n] which.
            generator: source of randomness.

        Returns:
            [n] actions.
        """
        u = torch.rand(len(rows), generator=generator, device=rows.device, dtype=torch.float64)
        u *= self.total.index_select(0, rows)
        action = torch.zeros_like(rows)
        for step in self.steps:
            action += u >= step.index_select(0, rows)
        return action


def parameters(policy: nn.Module) -> dict[str, nn.Parameter]:
    """Return θ: the parameters with requires_grad, each once, in the order of ``named_parameters``."""
    return {name: p for name, p in policy.named_parameters() if p.requires_grad}


def num_parameters(policy: nn.Module) -> int:
    """P, the length of θ."""
    return sum(p.numel() for p in parameters(policy).values())


def prepare(policy: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return a copy of the policy in ``dtype`` on ``device``, in evaluation mode; the caller's module is not touched.

    The copy casts floating observations to the dtype of its parameters: a world's observations have a dtype of their own.

    Raises:
        InputError: if no parameter asks for a gradient, or one is not finite.
    """
    copied = copy.deepcopy(policy).to(device=device, dtype=dtype).eval()
    if not parameters(copied):
        raise checks.InputError(
            "A policy with parameters that require a gradient was expected, but all are frozen; set requires_grad on θ."
        )
    for name, p in copied.named_parameters():
        if not bool(torch.isfinite(p).all()):
            raise checks.InputError(f"Finite parameters were expected, but '{name}' holds NaN or infinity; load another θ.")
    copied.register_forward_pre_hook(_match_dtype)
    return copied


def _match_dtype(policy: nn.Module, args: tuple[object, ...]) -> tuple[object, ...]:
    """Cast floating arguments to the dtype of the policy's parameters."""
    dtype = next(p.dtype for p in policy.parameters() if p.is_floating_point())
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)


def features(obs: Tensor, num_classes: int | None, dtype: torch.dtype) -> Tensor:
    """Return what a network reads: one-hot rows [n, S] for Discrete observations, flattened numbers [n, d] otherwise."""
    if num_classes is None:
        return obs.to(dtype).flatten(1) if obs.dim() > 1 else obs.to(dtype).unsqueeze(1)
    # Not nn.functional.one_hot: it looks at the numbers, which vmap does not allow.
    return (obs.unsqueeze(-1) == torch.arange(num_classes, device=obs.device)).to(dtype)
