"""A training run before it begins: every setting checked, resolved and digested, nothing sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

import varlab
from varlab import checks, estimators, policies, storage
from varlab.envs.base import Environment
from varlab.envs.registry import make as make_env
from varlab.estimators.base import Estimator
from varlab.estimators.nodes import NodeEstimator
from varlab.training.critics import LARGEST_LR, CriticUpdates
from varlab.training.normalised import Standardised
from varlab.types import Trajectories, Values
from varlab.values import exact as exact_values

OPTIMIZERS = ("ascent", "adam")
#: Episodes of a batch where neither their number nor a quota of steps is given.
EPISODES = 64


@dataclass(frozen=True)
class TrainingPlan:
    """A training run before it begins.

    Attributes:
        env: the world.
        policy: the policy at θ_0; it is copied, never changed.
        phi: the choice of Φ, standardised where that was asked for.
        settings: the numeric settings that the digest covers.
        digest: content digest of the settings.
        setting: digest of the settings without seed and θ_0: runs that share it are repetitions of each other.
        options: the settings as objects.
    """

    env: Environment
    policy: nn.Module
    phi: Estimator
    settings: Mapping[str, object]
    digest: str
    setting: str
    options: Mapping[str, object]


def plan(
    env: Environment | str,
    policy: nn.Module,
    phi: str | Estimator,
    *,
    epochs: int = 50,
    episodes: int | None = None,
    steps: int | None = None,
    group_size: int | None = None,
    shared_start: bool = True,
    optimizer: str = "adam",
    lr: float = 3e-3,
    normalise: bool = False,
    gamma: float = 1.0,
    discount_weighting: bool = True,
    at_cut: str = "bootstrap",
    values: str | Callable[[Trajectories, frozenset[str]], Values] = "critic",  # noqa: A002
    critic: CriticUpdates | None = None,
    checkpoints: Sequence[int] = (),
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    env_label: str | None = None,
    policy_label: str | None = None,
    user_module: str | None = None,
) -> TrainingPlan:
    """Check every setting and compute the digest without sampling. Arguments are those of :func:`varlab.training.train`.

    Returns:
        What :func:`varlab.training.train` would do.

    Raises:
        InputError: for any setting that cannot be used.
    """
    env = make_env(env) if isinstance(env, str) else env
    chosen = estimators.resolve(phi)
    if len(chosen) != 1:
        raise checks.InputError(
            f"One Φ was expected to train with, but {', '.join(e.label for e in chosen)} came; name one, and train once for each."
        )
    chosen = chosen[0]
    if episodes is not None and steps is not None:
        raise checks.InputError(
            f"A batch of episodes or a quota of steps was expected, but episodes={episodes} and steps={steps} came; give one."
        )
    if steps is None:
        episodes = checks.positive_int("episodes", EPISODES if episodes is None else episodes)
    else:
        steps = checks.positive_int("steps", steps)
    if group_size is not None:
        group_size = checks.positive_int("group_size", group_size)
        if episodes is None or episodes % group_size:
            came = "a quota of steps leaves their number open" if episodes is None else f"episodes={episodes}"
            raise checks.InputError(
                f"Whole groups of group_size={group_size} episodes were expected in every batch, but {came}; set for instance "
                f"episodes={8 * group_size}."
            )
    if episodes is not None:  # a batch is one unit
        chosen.check_unit(group_size or episodes, episodes // (group_size or episodes))
    epochs = checks.positive_int("epochs", epochs)
    kept = sorted({checks.positive_int("checkpoints", e, least=0) for e in checkpoints})
    if kept and kept[-1] > epochs:
        raise checks.InputError(
            f"Checkpoints of at most {epochs} epochs were expected, but checkpoints names {kept[-1]}; lower it or raise epochs."
        )
    checks.one_of("optimizer", optimizer, OPTIMIZERS)
    if isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr <= LARGEST_LR:
        raise checks.InputError(
            f"A positive lr (of at most {LARGEST_LR:g}) was expected, but it is {lr!r}; set for instance lr=0.003."
        )
    checks.in_range("gamma", gamma, 0.0, 1.0)
    checks.one_of("rule at_cut", at_cut, estimators.AT_CUT)
    if isinstance(values, str):
        checks.one_of("source of values", values, ("auto", "exact", "critic"))
        known = exact_values.applies(env, policy)
        if values == "exact" and not known:
            raise checks.InputError(
                f"A finite MDP, or a linear system with a linear policy, was expected for values=exact, but {env.name} with "
                f"{type(policy).__name__} is neither; use values=critic."
            )
        values = "exact" if known and values != "critic" else "critic"
    if normalise:
        if isinstance(chosen, NodeEstimator) or type(chosen).coefficients is not Estimator.coefficients:
            raise checks.InputError(
                f"A Φ of the steps taken alone was expected with normalise=true, but {chosen.label} has further terms; leave "
                "normalise out."
            )
        chosen = Standardised(chosen)
    checks.dtype_of(dtype)
    checks.device_of(device)
    critic = critic or CriticUpdates()
    # Only where they are used, so that they change no other digest.
    units = {"group_size": group_size, "shared_start": bool(shared_start)} if group_size else {}
    options = {
        "epochs": epochs, "episodes": episodes, "steps": steps, "optimizer": optimizer, "lr": float(lr), "gamma": float(gamma),
        "discount_weighting": bool(discount_weighting), "at_cut": at_cut, "checkpoints": kept, "dtype": dtype,
        "device": torch.device(device).type, **units,
    }  # fmt: skip
    settings = {
        "numerics": varlab.NUMERICS,
        "kind": "training",
        "env": dict(env.identity),
        "horizon": env.horizon,
        "policy": str(policy),
        "trainable": list(policies.parameters(policy)),
        "phi": chosen.label,
        "values": values if isinstance(values, str) else getattr(values, "source", "user"),
        "critic": {**vars(critic), "hidden": list(critic.hidden), "init": critic.init and dict(critic.init)},
        **options,
        **({} if user_module is None else {"user_module": user_module}),
    }
    setting = storage.digest({k: v for k, v in settings.items() if k != "checkpoints"})
    settings |= {"seed": checks.positive_int("seed", seed, 0), "theta": {k: v.detach() for k, v in policy.state_dict().items()}}
    objects = {
        "group_size": group_size, "shared_start": bool(shared_start), "values": values, "critic": critic,
        "seed": settings["seed"], "device": torch.device(device),
        "env_label": env_label or env.name, "policy_label": policy_label or type(policy).__name__,
    }  # fmt: skip
    return TrainingPlan(env, policy, chosen, settings, storage.digest(settings), setting, {**options, **objects})
