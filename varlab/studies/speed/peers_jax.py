"""What a user of JAX would write: the same network in ``jax.numpy``, compiled chunk by chunk.

Source: JAX: Composable Transformations of Python+NumPy Programs (Bradbury et al., 2018).
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn

from varlab import checks
from varlab.studies.speed.results import MomentsResult, PairsResult, Result, TraceResult
from varlab.studies.speed.works import Work

Theta = dict[str, jax.Array]


def log_prob(theta: Theta, obs: jax.Array, action: jax.Array) -> jax.Array:
    """Return log π(a_t | s_t) [T] of a tanh network with logits, or with means and log σ where θ holds ``log_std.value``."""
    names = [name.removesuffix(".weight") for name in theta if name.endswith(".weight")]
    x = obs
    for i, name in enumerate(names):
        x = jnp.tanh(x) if i else x
        x = x @ theta[f"{name}.weight"].T + theta[f"{name}.bias"]
    if "log_std.value" not in theta:
        return jnp.take_along_axis(jax.nn.log_softmax(x), action[:, None], 1)[:, 0]
    log_std = theta["log_std.value"]
    return (-0.5 * ((action - x) / jnp.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def nested(theta: Theta, obs: jax.Array, action: jax.Array, phi: jax.Array) -> Theta:
    """Return the gradients of one trajectory under every φ, [K, ...] for each parameter tensor, by vmap(grad)."""

    def loss(t: Theta, f: jax.Array) -> jax.Array:
        return (log_prob(t, obs, action) * f).sum()

    return jax.vmap(lambda f: jax.grad(loss)(theta, f))(phi)


def from_steps(theta: Theta, obs: jax.Array, action: jax.Array, phi: jax.Array) -> Theta:
    """Return the same from the scores of every step, S [T, P], and one product φ S."""
    single = jax.grad(lambda t, o, a: log_prob(t, o[None], a[None])[0])
    scores = jax.vmap(lambda o, a: single(theta, o, a))(obs, action)
    return {name: phi @ z.reshape(len(z), -1) for name, z in scores.items()}


def _each(function: Callable[[jax.Array], jax.Array], leaves: list[jax.Array]) -> jax.Array:
    return jnp.concatenate([function(g) for g in leaves], 1)


#: Sums over one chunk, from its gradients [C, K, p] tensor by tensor: put together before they are summed, they cost three times
#: as much.
PARTS: dict[type[Result], Callable[[list[jax.Array]], tuple[jax.Array, ...]]] = {
    MomentsResult: lambda leaves: (_each(lambda g: g.sum(0), leaves), _each(lambda g: (g * g).sum(0), leaves)),
    TraceResult: lambda leaves: (_each(lambda g: g.sum(0), leaves), sum((g * g).sum((0, 2)) for g in leaves)),
    PairsResult: lambda leaves: (sum(((g[0::2] - g[1::2]) ** 2).sum((0, 2)) for g in leaves) / 2,),
}


@functools.cache
def compiled(gradients: Callable[..., Theta], result: type[Result], names: tuple[str, ...]) -> Callable[..., tuple]:
    """Return the compiled sums over one chunk: (θ, obs, action, φ) → parts of ``result``."""

    def run(theta: Theta, obs: jax.Array, action: jax.Array, phi: jax.Array) -> tuple[jax.Array, ...]:
        made = jax.vmap(lambda o, a, f: gradients(theta, o, a, f))(obs, action, phi)
        return PARTS[result]([made[name].reshape(*phi.shape[:2], -1) for name in names])

    return jax.jit(run)


class JaxPeer:
    """Compiled chunks whose sums are added in float64.

    Attributes:
        name: of the contender.
        chunks: sizes to choose among.
        by_step: whether it holds a gradient for every step.
    """

    name: str
    gradients: Callable[..., Theta]
    chunks: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 512)
    by_step: bool = False

    def __init__(self, work: Work, result: type[Result]) -> None:
        """Copy θ.

        Raises:
            InputError: for a network that is not a chain of linear layers with tanh between.
        """
        if {type(m) for m in work.policy.net} != {nn.Linear, nn.Tanh} or work.obs.device.type != "cpu":
            raise checks.InputError("A tanh network on the CPU was expected by the JAX peers, but another came; leave them out.")
        self.work, self.result = work, result
        self.names = tuple(name for name, _ in work.policy.named_parameters())
        self.double = work.obs.dtype == torch.float64
        with self.precision():
            self.theta = {name: jnp.asarray(p.detach().numpy()) for name, p in work.policy.named_parameters()}

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which JAX keeps the dtype of the work."""
        return jax.enable_x64(self.double)

    def __call__(self, chunk: int) -> tuple[Tensor, ...]:
        """Return the result, with ``chunk`` trajectories at a time."""
        made = self.result(self.work)
        with self.precision():
            run = compiled(type(self).gradients, self.result, self.names)
            sums, made.sums = made.sums, [total.numpy() for total in made.sums]  # the same memory, added to by numpy
            for o, a, f in self._padded(chunk):
                made.add(tuple(np.asarray(x) for x in run(self.theta, o, a, f)))
                made.passed(len(o))
            made.sums = sums
        return made.found()

    def _padded(self, chunk: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Give the pieces of a work; ragged ones padded to a few lengths only, since each is compiled anew."""
        ragged = int(self.work.length[-1]) < int(self.work.length[0])
        for obs, action, phi in self.work.pieces(chunk):
            o, a, f = obs.numpy(), action.numpy(), phi.numpy()
            if ragged:
                more = max(8, 2 ** math.ceil(math.log2(o.shape[1]))) - o.shape[1]
                o, a = (np.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)) for x in (o, a))
                f = np.pad(f, [(0, 0), (0, 0), (0, more)])
            yield o, a, f


class JaxNested(JaxPeer):
    """Per-trajectory gradients of every Φ."""

    name, gradients = "jax.jit(vmap(grad))", staticmethod(nested)


class JaxStepScores(JaxPeer):
    """Per-step scores, then one product for all Φ."""

    name, gradients = "per-step scores times all φ, jax.jit", staticmethod(from_steps)
    chunks, by_step = (2, 4, 8, 16, 32), True
