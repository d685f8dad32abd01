"""A measurement before it runs: every setting checked, resolved and digested, nothing sampled."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

import varlab
from varlab import checks, estimators, policies, storage
from varlab.analysis.bias import LEAST_DRAWS
from varlab.envs.base import Environment
from varlab.envs.parameter_exploring import ParameterExploring, check_inner_gamma
from varlab.envs.registry import make as make_env
from varlab.estimators.base import Estimator
from varlab.types import Reference, Trajectories, Values
from varlab.values import exact as exact_values
from varlab.values.critic import CriticSettings
from varlab.values.dynamic_programming import check_size

#: Blocks of every measurement: the unit of every interval, whatever n.
BLOCKS = 50


@dataclass(frozen=True)
class Plan:
    """A measurement before it runs: resolved objects, settings and digest."""

    env: Environment
    policy: nn.Module
    phi: tuple[Estimator, ...]
    settings: Mapping[str, object]
    digest: str
    options: Mapping[str, object] = field(default_factory=dict)


def plan(
    env: Environment | str,
    policy: nn.Module,
    phi: Sequence[str | Estimator] | str | Estimator = estimators.SOURCE_TEXT,
    *,
    n: int,
    gamma: float = 1.0,
    discount_weighting: bool = True,
    cut: int | None = None,
    at_cut: str = "bootstrap",
    values: str | Callable[[Trajectories, frozenset[str]], Values] = "auto",  # noqa: A002
    continuations: int = 10,
    values_error: float = 0.0,
    error_seed: int = 0,
    critic: CriticSettings | None = None,
    reference: str | Reference = "auto",
    n_reference: int | None = None,
    max_reference: int = 1_000_000,
    reference_seed: int = 0,
    objectives: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 100,
    pilot: int = 1000,
    part_size: int | None = None,
    chunk: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    memory_limit: int = 2**30,
    per_parameter: bool = True,
    draws: int = 1999,
    exact: bool | None = None,
    group_size: int = 1,
    groups: int = 1,
    shared_start: bool = True,
    behaviour: nn.Module | None = None,
    theta: str = "given",
    env_label: str | None = None,
    policy_label: str | None = None,
    behaviour_label: str | None = None,
    user_module: str | None = None,
) -> Plan:
    """Check every setting and compute the digest without sampling. Arguments are those of :func:`measure`.

    Returns:
        What :func:`measure` would do.

    Raises:
        InputError: for any setting that cannot be used.
    """
    env = make_env(env) if isinstance(env, str) else env
    chosen = estimators.resolve(phi)
    critic = critic or CriticSettings()
    n = checks.positive_int("n", n)
    if n < BLOCKS:
        raise checks.InputError(f"At least {BLOCKS} trajectories were expected, one for each block, but n={n}; raise n.")
    group_size, groups = checks.positive_int("group_size", group_size), checks.positive_int("groups", groups)
    _check_units(chosen, n, group_size, groups)
    checks.in_range("gamma", gamma, 0.0, 1.0)
    checks.one_of("rule at_cut", at_cut, estimators.AT_CUT)
    pilot, memory_limit = checks.positive_int("pilot", pilot, 2), checks.positive_int("memory_limit", memory_limit)
    batch_size, draws = checks.positive_int("batch_size", batch_size), checks.positive_int("draws", draws, LEAST_DRAWS)
    max_reference = checks.positive_int("max_reference", max_reference, BLOCKS)
    seed, reference_seed = checks.positive_int("seed", seed, 0), checks.positive_int("reference_seed", reference_seed, 0)
    n_reference = None if n_reference is None else checks.positive_int("n_reference", n_reference, BLOCKS)
    part_size = None if part_size is None else checks.positive_int("part_size", part_size)
    chunk = None if chunk is None else checks.positive_int("chunk", chunk)
    cut = None if cut is None else checks.positive_int("cut", cut)
    if cut is not None and cut > env.horizon:
        raise checks.InputError(
            f"A cut of at most the horizon {env.horizon} was expected, but cut={cut}; lower it or leave it out."
        )
    if isinstance(values, str):
        checks.one_of("source of values", values, ("auto", "exact", "critic", "cloning"))
    continuations = checks.positive_int("values.m", continuations)
    error_seed = checks.positive_int("values.error_seed", error_seed, 0)
    values_error = checks.in_range("values.error", values_error, 0.0, sys.float_info.max)

    if isinstance(reference, str):
        checks.one_of("reference", reference, ("auto", "exact", "sampled"))
    for what, given in (("values", values), ("reference", reference)):
        if isinstance(given, str) and given == "exact" and not exact_values.applies(env, policy):
            raise checks.InputError(
                f"A finite MDP, or a linear system with a linear policy, was expected for {what}=exact, but {env.name} with "
                f"{type(policy).__name__} is neither; use {what}=auto."
            )
    if env.finite is not None and not (values == "critic" and reference == "sampled"):
        check_size(env.finite, env.horizon)
    default = ("J_1",) if gamma == 1.0 else ("J_gamma",)
    names = tuple(dict.fromkeys([objectives] if isinstance(objectives, str) else objectives or default))
    for name in names:
        checks.one_of("objective", name, ("J_1", "J_gamma"))
    if gamma == 1.0:
        names = ("J_1",)
    checks.dtype_of(dtype)
    checks.device_of(device)
    if isinstance(env, ParameterExploring):
        check_inner_gamma(env, gamma, names)
    options = {
        "n": n, "gamma": float(gamma), "discount_weighting": bool(discount_weighting), "cut": cut if cut != env.horizon else None,
        "at_cut": at_cut, "n_reference": n_reference, "max_reference": max_reference, "reference_seed": reference_seed,
        "objectives": list(names), "seed": seed, "batch_size": batch_size, "pilot": pilot, "part_size": part_size,
        "dtype": dtype, "device": torch.device(device).type, "per_parameter": per_parameter, "memory_limit": memory_limit,
        "draws": draws, "exact": exact,
    }  # fmt: skip
    # Only where they are used, so that they change no other digest.
    units = {"group_size": group_size, "groups": groups, "shared_start": bool(shared_start)} if group_size * groups > 1 else {}
    dials: dict[str, object] = {"continuations": continuations} if isinstance(values, str) and values == "cloning" else {}
    dials |= {"values_error": values_error, "error_seed": error_seed} if values_error else {}
    acting = {}
    if behaviour is not None:
        acting["behaviour"] = [str(behaviour), {k: v.detach() for k, v in behaviour.state_dict().items()}]
    own = {} if user_module is None else {"user_module": user_module}
    critic_settings = _critic_settings(critic)
    settings = {
        "numerics": varlab.NUMERICS,
        "env": dict(env.identity),
        "horizon": env.horizon,
        "policy": str(policy),
        "theta": {k: v.detach() for k, v in policy.state_dict().items()},
        "trainable": list(policies.parameters(policy)),  # freezing a layer makes another gradient of the same numbers
        "phi": [e.label for e in chosen],
        "values": values if isinstance(values, str) else getattr(values, "source", "user"),
        "reference": reference if isinstance(reference, str) else reference.digest or storage.digest({"given": reference}),
        "critic": critic_settings,
        "blocks": BLOCKS,
        **options,
        **units,
        **dials,
        **acting,
        **own,
    }
    objects = {
        "group_size": group_size, "groups": groups, "shared_start": bool(shared_start), "behaviour": behaviour,
        "behaviour_label": "" if behaviour is None else behaviour_label or type(behaviour).__name__,
        "values": values, "continuations": continuations, "values_error": values_error, "error_seed": error_seed,
        "reference": reference, "critic": critic, "chunk": chunk, "device": torch.device(device),
        "theta": theta, "env_label": env_label or env.name, "policy_label": policy_label or type(policy).__name__,
    }  # fmt: skip
    return Plan(env, policy, chosen, settings, storage.digest(settings), {**options, **objects})


def _critic_settings(critic: CriticSettings) -> dict[str, object]:
    """Return what a digest covers; targets, time and steps only where they are not the defaults, so that earlier digests stay."""
    settings = {**vars(critic), "hidden": list(critic.hidden)}
    settings["init"] = None if critic.init is None else {k: torch.as_tensor(v) for k, v in critic.init.items()}
    if critic.target == "monte_carlo":
        del settings["target"], settings["lam"]
    if not critic.time_aware:
        del settings["time_aware"]
    if critic.steps is None:
        del settings["steps"]
    return settings


def _check_units(chosen: Sequence[Estimator], n: int, group_size: int, groups: int) -> None:
    """Check that n trajectories fill enough units, and that a Φ of several trajectories gets several.

    Raises:
        InputError: if not.
    """
    unit = group_size * groups
    if unit > 1 and (n % unit or n < BLOCKS * unit):
        nearest = max(BLOCKS, round(n / unit)) * unit
        raise checks.InputError(
            f"At least {BLOCKS} whole units of group_size × groups = {group_size} × {groups} = {unit} trajectories were "
            f"expected, but n={n}; set for instance n={nearest}."
        )
    for e in chosen:
        if e.batchwise and unit == 1:
            raise checks.InputError(
                f"Units of several trajectories were expected for {e.label}, which is a function of a batch, but "
                "group_size × groups = 1; set for instance group_size=8."
            )
        e.check_unit(group_size, groups)
