"""Agents that Stable-Baselines3 saved: files of pickled code, which are read only where somebody vouches for them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from varlab.checks import InputError
from varlab.storage.cache import UNREADABLE, first_line


@dataclass(frozen=True)
class Agent:
    """What a file says of an agent's policy.

    Attributes:
        policy_class: class of the policy.
        observation_space: Gymnasium space that it was trained with.
        action_space: likewise.
        arguments: keyword arguments of the class.
        state: its parameters by name.
    """

    policy_class: type
    observation_space: Any
    action_space: Any
    arguments: Mapping[str, Any]
    state: Mapping[str, Tensor]


def read_agent(path: str | Path, trust: bool) -> Agent:
    """Read the policy of a Stable-Baselines3 agent (``model.save``), PPO or A2C. Reading it runs what code it holds.

    Args:
        path: the zip file.
        trust: whether the caller vouches for the file.

    Returns:
        What it says of its policy; nothing is built.

    Raises:
        InputError: if the file is missing, not vouched for, damaged or of another kind of agent, or the extra is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"A file of a Stable-Baselines3 agent was expected at {path}, but there is none; mend the path.")
    if trust is not True:
        raise InputError(
            f"Trust in {path} was expected, because files of Stable-Baselines3 hold pickled code that runs when they are read, "
            f"but trust={trust!r}; set theta.trust=true if the file is your own or comes from somebody you trust."
        )
    try:
        from stable_baselines3.common.policies import ActorCriticPolicy
        from stable_baselines3.common.save_util import load_from_zip_file
    except ImportError as error:
        raise InputError(
            f"Stable-Baselines3 was expected for {path}, but it cannot be imported ({first_line(error)}); install it: pip "
            "install 'stable-baselines3>=2.9' -c constraints.txt"
        ) from error
    try:
        data, state, _ = load_from_zip_file(path, device="cpu")
        found = (data["policy_class"], data["observation_space"], data["action_space"])
        policy_arguments, uses_sde, weights = dict(data["policy_kwargs"]), data.get("use_sde", False), state["policy"]
    except (*UNREADABLE, RuntimeError, AttributeError, ImportError, pickle.UnpicklingError) as error:
        raise InputError(
            f"A file that model.save() of a PPO or A2C agent wrote was expected at {path}, but it could not be read "
            f"({first_line(error)}); save the agent again with the installed version of Stable-Baselines3."
        ) from error
    if not (isinstance(found[0], type) and issubclass(found[0], ActorCriticPolicy)):
        raise InputError(
            f"A PPO or A2C agent was expected in {path}, but its policy is a {getattr(found[0], '__name__', found[0])}; train "
            "one of these, whose policy has a probability for every action."
        )
    if uses_sde or policy_arguments.get("use_sde", False):
        raise InputError(
            f"Independent noise in every step was expected of the agent in {path}, but it explores by a state-dependent noise "
            "that lasts over steps; train it with use_sde=False."
        )
    policy_arguments.pop("device", None)
    return Agent(*found, policy_arguments, weights)
