"""varlab measures the mean, the bias and the variance of policy-gradient estimators at fixed parameters θ.

>>> import varlab
>>> env = varlab.envs.make("CartPole-v1")
>>> policy = varlab.policies.make("mlp", env)
>>> result = varlab.measure(env, policy, ["total_return", "reward_to_go", "gae(lam=0.95)"], n=10_000)  # doctest: +SKIP
>>> result.summary  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from varlab.checks import InputError

if TYPE_CHECKING:
    from varlab import envs, estimators, policies, values
    from varlab.experiment import Result, measure
    from varlab.oracles import exact
    from varlab.traces import variances
    from varlab.training import train

__version__ = "0.1.0"

#: Raised by every change that moves a number; part of each run's digest.
NUMERICS = 3

__all__ = [
    "NUMERICS", "InputError", "Result", "__version__", "envs", "estimators", "exact", "measure", "policies", "train", "values",
    "variances",
]  # fmt: skip

_FROM_EXPERIMENT = ("measure", "Result")


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that ``import varlab`` stays light.

    Args:
        name: a member of ``__all__``.

    Returns:
        The room or the object of that name.

    Raises:
        AttributeError: if the package has no such name.
    """
    if name in _FROM_EXPERIMENT:
        return getattr(importlib.import_module("varlab.experiment"), name)
    if name == "variances":
        return importlib.import_module("varlab.traces").variances
    if name == "exact":
        return importlib.import_module("varlab.oracles").exact
    if name == "train":
        return importlib.import_module("varlab.training").train
    if name in __all__:
        return importlib.import_module(f"varlab.{name}")
    raise AttributeError(f"module 'varlab' has no attribute '{name}'; its public names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    """Return the public names."""
    return list(__all__)
