"""The policy of a PPO or A2C agent of Stable-Baselines3 as a module of varlab: its actor alone is θ.

    observation → preprocessing → feature extractor → policy_net → action_net → Categorical, or Normal(mean, exp log σ)

The critic's networks are left out; a feature extractor that actor and critic share is part of θ. Out of these parts a fresh
module is made, so that none is reached by two paths, as they are in Stable-Baselines3's own (functional calls would then write θ
into the live module). What normalised observations in training (VecNormalize) is not in the file: such an agent needs a world
that normalises them itself. Actions outside the bounds of a Box are clipped by the world, as Stable-Baselines3 clips them.
"""

from __future__ import annotations

import gymnasium
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from varlab import checks, rng, storage
from varlab.envs.base import Environment
from varlab.policies.base import Broadcast, categorical, features


class StableBaselinesPolicy(nn.Module):
    """The actor of an ``ActorCriticPolicy``; its forward gives one log-probability per observation."""

    def __init__(self, actor_critic: nn.Module, env: Environment) -> None:
        """Take the actor's parts out of ``actor_critic``, which is not changed.

        Args:
            actor_critic: a Stable-Baselines3 ``ActorCriticPolicy``.
            env: the world that it will see.
        """
        super().__init__()
        from stable_baselines3.common.preprocessing import is_image_space

        space = actor_critic.observation_space
        self.num_classes = int(space.n) if isinstance(space, gymnasium.spaces.Discrete) else None
        image = is_image_space(space)
        self.scale = 255.0 if image and actor_critic.normalize_images else 1.0
        # In training images were turned from (height, width, channel) to (channel, height, width).
        self.turned = image and space.shape != env.observation_space.shape
        self.features = actor_critic.pi_features_extractor
        self.actor = actor_critic.mlp_extractor.policy_net
        self.head = actor_critic.action_net
        self.discrete = isinstance(actor_critic.action_space, gymnasium.spaces.Discrete)
        if not self.discrete:
            self.log_std = Broadcast(actor_critic.log_std.detach().clone())

    def extra_repr(self) -> str:
        """What the printed modules do not show: part of a measurement's digest."""
        return f"scale={self.scale:g}, turned={self.turned}, classes={self.num_classes}"

    def forward(self, obs: Tensor) -> Distribution:
        """Return the action distribution at observations [n, ...]."""
        dtype = self.head.weight.dtype
        if self.num_classes is not None:
            x = features(obs, self.num_classes, dtype)
        else:
            x = (obs.permute(0, 3, 1, 2) if self.turned else obs).to(dtype)
            x = x / self.scale if self.scale != 1.0 else x
        out = self.head(self.actor(self.features(x)))
        if self.discrete:
            return categorical(out)
        return Independent(Normal(out, self.log_std(out).exp(), validate_args=False), 1, validate_args=False)


def load(path: str, env: Environment, trust: bool = False) -> StableBaselinesPolicy:
    """Return policy and θ of a PPO or A2C agent.

    Args:
        path: the zip file that ``model.save`` wrote.
        env: the world that it was trained in.
        trust: whether the caller vouches for the file, which holds pickled code.

    Returns:
        The policy.

    Raises:
        InputError: for a file that cannot or must not be read, or an agent of another world.
    """
    agent = storage.read_agent(path, trust)
    _check_spaces(path, env, agent.observation_space, agent.action_space)
    with rng.global_generator(0):  # the first weights are drawn and then replaced
        try:
            built = agent.policy_class(agent.observation_space, agent.action_space, lambda _: 0.0, **agent.arguments)
            built.load_state_dict(dict(agent.state))
        except (RuntimeError, TypeError) as error:
            raise checks.InputError(
                f"A policy that fits its parameters was expected in {path}, but {' '.join(str(error).split())[:200]}; save the "
                "agent again with the installed version of Stable-Baselines3."
            ) from error
    return StableBaselinesPolicy(built.cpu(), env).eval()


def _check_spaces(path: str, env: Environment, observations: object, actions: object) -> None:
    """Check that an agent sees and does what the world shows and takes.

    Raises:
        InputError: if it does not.
    """
    seen, shape = env.observation_space, getattr(observations, "shape", None)
    same = _alike(observations, seen) or (
        isinstance(seen, gymnasium.spaces.Box) and len(seen.shape) == 3 and shape == (seen.shape[2], *seen.shape[:2])
    )
    if not same or not _alike(actions, env.action_space):
        raise checks.InputError(
            f"An agent with observations {seen} and actions {env.action_space} was expected for {env.name}, but the one in "
            f"{path} was trained with {observations} and {actions}; choose the environment that it was trained in."
        )


def _alike(a: object, b: gymnasium.Space) -> bool:
    if isinstance(b, gymnasium.spaces.Discrete):
        return isinstance(a, gymnasium.spaces.Discrete) and a.n == b.n and a.start == b.start
    return isinstance(a, gymnasium.spaces.Box) and a.shape == b.shape
