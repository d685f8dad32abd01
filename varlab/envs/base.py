"""An environment as varlab sees it: spaces, a horizon, a simulator of many episodes at once, and maybe finite dynamics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import gymnasium
import torch

from varlab import checks
from varlab.types import Simulator

if TYPE_CHECKING:
    from varlab.envs.finite import FiniteMDP


def starts(n: int, group: int) -> int:
    """Return how many states n episodes begin in where each ``group`` consecutive ones share theirs.

    Raises:
        InputError: if the episodes do not fill whole groups.
    """
    if n % group:
        raise checks.InputError(f"Whole groups of {group} episodes were expected, but {n} episodes came; give a multiple.")
    return n // group


@dataclass(frozen=True)
class Environment:
    """A world together with the length H of its objective J = E Σ_{t<H} γ^t r_t.

    Attributes:
        name: Gymnasium id or the user's name.
        horizon: H; episodes alive at t = H are truncated.
        observation_space: Gymnasium Box or Discrete.
        action_space: Gymnasium Box (one axis) or Discrete.
        make_simulator: called with a torch device, gives a fresh :class:`~varlab.types.Simulator`.
        part_size: episodes that it is efficient to simulate together.
        finite: the dynamics as a finite MDP, or None.
        identity: what distinguishes this world in a digest (id, keyword arguments, tables).
    """

    name: str
    horizon: int
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    make_simulator: Callable[[torch.device], Simulator]
    part_size: int = 2048
    finite: FiniteMDP | None = None
    identity: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check spaces and horizon.

        Raises:
            InputError: for a space that is neither Discrete nor Box, or a horizon that is not a positive whole number.
        """
        object.__setattr__(self, "horizon", checks.positive_int("horizon", self.horizon))
        spaces = gymnasium.spaces
        for what, space in (("observation", self.observation_space), ("action", self.action_space)):
            flat_enough = what == "observation" or not isinstance(space, spaces.Box) or len(space.shape) == 1
            if not isinstance(space, (spaces.Discrete, spaces.Box)) or not flat_enough:
                raise checks.InputError(
                    f"A Discrete or Box {what} space was expected{'' if flat_enough else ' (Box with one axis)'}, but "
                    f"{self.name} has {space}; wrap the environment (gymnasium.wrappers.Flatten{what.capitalize()} or a "
                    f"Transform{what.capitalize()}) so that it offers one."
                )
            if isinstance(space, spaces.Discrete) and int(space.start) != 0:
                raise checks.InputError(
                    f"A Discrete {what} space that starts at 0 was expected, but {self.name} has {space}; shift it by a wrapper."
                )

    @property
    def objective_horizon(self) -> int:
        """H as rows report it: of the world in which rewards are paid, should this one run its episodes as single steps."""
        return self.horizon

    @property
    def discrete_actions(self) -> bool:
        """Whether actions are 0 … A − 1."""
        return isinstance(self.action_space, gymnasium.spaces.Discrete)

    @property
    def num_actions(self) -> int:
        """A for discrete actions, the number of action dimensions otherwise."""
        return int(self.action_space.n) if self.discrete_actions else int(self.action_space.shape[0])

    @property
    def discrete_observations(self) -> bool:
        """Whether observations are 0 … S − 1."""
        return isinstance(self.observation_space, gymnasium.spaces.Discrete)

    @property
    def num_features(self) -> int:
        """Length of the feature vector: S (one-hot) for Discrete observations, the flattened size for Box."""
        space = self.observation_space
        return int(space.n) if self.discrete_observations else int(torch.tensor(space.shape).prod())
