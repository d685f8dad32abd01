"""From configuration to arguments: what scripts hand to ``varlab.measure``.

Names in a configuration are looked up in the registries of the rooms; nothing in a file is imported or run by name.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from varlab import checks
from varlab.checks import InputError

log = logging.getLogger(__name__)


def choices(phi: Mapping[str, Mapping[str, Any] | None]) -> list[Any]:
    """Return the estimators that a ``phi`` configuration names, in its order.

    A list-valued argument stands for one Φ per value (several lists: every combination).

    Args:
        phi: arguments by name, such as ``{"gae": {"lam": [0.9, 1.0]}}``.

    Returns:
        The estimators.

    Raises:
        InputError: if an entry is not a mapping of arguments.
    """
    from varlab import estimators

    made = []
    for name, arguments in phi.items():
        if not isinstance(arguments, (Mapping, type(None))):
            raise InputError(
                f"Arguments in braces were expected for phi.{name}, but it is {arguments!r}; write phi.{name}={{}} or give them."
            )
        keys = list(arguments or {})
        values = [v if isinstance(v, list) else [v] for v in (arguments or {}).values()]
        made += [estimators.make(name, **dict(zip(keys, combination, strict=True))) for combination in itertools.product(*values)]
    return made


def arguments(cfg: DictConfig) -> dict[str, Any]:
    """Build everything that ``varlab.measure`` needs from a composed configuration.

    Args:
        cfg: ``conf/measure.yaml`` with its groups.

    Returns:
        The keyword arguments of :func:`varlab.measure` that say what is measured, and the labels of its rows.

    Raises:
        InputError: for a setting that cannot be used.
    """
    from varlab import storage
    from varlab.values import CriticSettings

    plain = _plain(cfg)
    module = user_module(plain)
    env, policy, theta, policy_label = _world(plain, plain["theta"]["seed"])
    behaviour, behaviour_label = None, None
    if plain["behaviour"] is not None:
        behaviour = copy.deepcopy(policy)
        behaviour_label = f"file:{storage.load_theta(plain['behaviour'], behaviour)[:8]}"
    critic = _known("critic", plain["critic"], (f.name for f in fields(CriticSettings)))
    if critic["init"] is not None:
        critic["init"] = storage.read_tensors(critic["init"])
    if critic["seed"] is not None:
        critic["seed"] = _seed("critic.seed", critic["seed"])
    reference = plain["reference"]
    same = ("cut", "at_cut", "objectives", "part_size", "chunk", "dtype", "device")
    return {
        "env": env,
        "policy": policy,
        "phi": choices(plain["phi"]),
        "n": checks.positive_int("n", plain["n"]),
        "gamma": checks.in_range("gamma", plain["gamma"], 0.0, 1.0),
        "discount_weighting": _switch("discount_weighting", plain["discount_weighting"]),
        "values": plain["values"]["source"],
        "continuations": checks.positive_int("values.m", plain["values"]["m"]),
        "values_error": plain["values"]["error"],
        "error_seed": _seed("values.error_seed", plain["values"]["error_seed"]),
        "critic": CriticSettings(**critic),
        "reference": reference["kind"],
        "n_reference": None if reference["n"] is None else checks.positive_int("reference.n", reference["n"]),
        "max_reference": checks.positive_int("reference.max", reference["max"]),
        "reference_seed": _seed("reference.seed", reference["seed"]),
        "seed": _seed("seed", plain["seed"]),
        "batch_size": checks.positive_int("batch_size", plain["batch_size"]),
        "draws": checks.positive_int("draws", plain["draws"]),
        "pilot": checks.positive_int("pilot", plain["pilot"]),
        "memory_limit": checks.positive_int("memory_limit", plain["memory_limit"]),
        "exact": None if plain["exact"] is None else _switch("exact", plain["exact"]),
        "per_parameter": _switch("per_parameter", plain["per_parameter"]),
        "group_size": checks.positive_int("group_size", plain["group_size"]),
        "groups": checks.positive_int("groups", plain["groups"]),
        "shared_start": _switch("shared_start", plain["shared_start"]),
        "behaviour": behaviour,
        "behaviour_label": behaviour_label,
        "theta": theta,
        "env_label": plain["env"]["id"],
        "policy_label": policy_label,
        "user_module": module,
        **{key: plain[key] for key in same},
    }


def reference_arguments(cfg: DictConfig) -> dict[str, Any]:
    """Build the arguments of a plan whose sampled reference is wanted alone, from ``conf/reference.yaml``.

    Args:
        cfg: the composed configuration, whose n is that of the reference.

    Returns:
        The keyword arguments of :func:`varlab.plans.plan`; the measurement's own are the smallest that do.
    """
    made = arguments(cfg)
    n = made["n"]
    return {**made, "n": 50, "n_reference": n, "group_size": 1, "groups": 1, "phi": choices({"total_return": None})}


def training_arguments(cfg: DictConfig, seed: int) -> dict[str, Any]:
    """Build everything that ``varlab.training.plan`` needs from a composed configuration.

    Args:
        cfg: ``conf/train.yaml`` with its groups.
        seed: root seed, one of :func:`training_seeds`.

    Returns:
        The keyword arguments of :func:`varlab.training.plan`.
    """
    from varlab import storage
    from varlab.training import CriticUpdates

    plain = _plain(cfg)
    module = user_module(plain)
    vary = _switch("vary_theta", plain["vary_theta"])
    env, policy, _, policy_label = _world(plain, seed if vary else plain["theta"]["seed"])
    critic = _known("critic", plain["critic"], (f.name for f in fields(CriticUpdates)))
    if critic["init"] is not None:
        critic["init"] = storage.read_tensors(critic["init"])
    same = ("epochs", "episodes", "steps", "group_size", "optimizer", "lr", "gamma", "at_cut", "checkpoints", "dtype", "device")
    switches = ("normalise", "discount_weighting", "shared_start")
    return {
        "env": env,
        "policy": policy,
        "phi": choices(plain["phi"]),
        "values": plain["values"]["source"],
        "critic": CriticUpdates(**critic),
        "seed": _seed("seed", seed),
        "env_label": plain["env"]["id"],
        "policy_label": policy_label,
        "user_module": module,
        **{key: plain[key] for key in same},
        **{key: _switch(key, plain[key]) for key in switches},
    }


def training_seeds(cfg: DictConfig) -> list[int]:
    """Return the root seeds that one job trains with, each once.

    Raises:
        InputError: if ``seeds`` is not a list of whole numbers.
    """
    if cfg.seeds is None:
        return [_seed("seed", cfg.seed)]
    if not OmegaConf.is_list(cfg.seeds) or not len(cfg.seeds):
        raise InputError(f"A list of seeds was expected, but seeds={cfg.seeds}; write seeds=[0,1,2], or seed=0 for one.")
    return list(dict.fromkeys(_seed("seeds", s) for s in cfg.seeds))


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain data.

    Raises:
        InputError: if a value is missing.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise InputError(f"A value was expected for {missing[0]}, but none came; give {missing[0]}=….")
    return OmegaConf.to_container(cfg, resolve=True)


def _known(group: str, given: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Return a copy of a group's settings, each of which must have a known name."""
    known = list(known)
    return {checks.one_of(f"setting of {group}", key, known): value for key, value in given.items()}


def user_module(plain: Mapping[str, Any]) -> str | None:
    """Run the user's own file where a configuration names one, and return the digest of its content."""
    if plain["user_module"] is None:
        return None
    from varlab import user_modules

    return user_modules.load(plain["user_module"])


def _world(plain: Mapping[str, Any], theta_seed: object) -> tuple[Any, Any, str, str]:
    """Return the environment, the policy at θ, and the names of θ and of the policy in rows."""
    from varlab import envs, policies, storage

    world = _known("env", plain["env"], ("id", "horizon", "kwargs"))
    env = envs.make(world["id"], world["horizon"], **world["kwargs"])
    theta, kind = plain["theta"], plain["policy"]["kind"]
    _known("policy", plain["policy"], {"kind", *inspect.signature(policies.make).parameters} - {"env", "theta_seed"})
    if theta.get("path") is not None:  # it brings its own network
        from varlab.policies import stable_baselines

        policy = stable_baselines.load(theta["path"], env, _switch("theta.trust", theta["trust"]))
        return env, policy, f"sb3:{storage.digest(policy.state_dict())[:8]}", "sb3"
    if kind in policies.USER and set(plain["policy"]) != {"kind", "settings"}:
        raise InputError(
            f"policy=user was expected for the policy '{kind}' of a user's module, but the settings of another kind came with "
            f"it; write policy=user policy.kind={kind}."
        )
    drawn = theta.get("run") is None and theta["file"] is None
    if drawn and theta_seed is None:
        raise InputError("A file of θ was expected, but theta.file=null; name one, or draw θ with theta=seed.")
    policy = policies.make(env=env, theta_seed=_seed("theta.seed", theta_seed) if drawn else 0, **plain["policy"])
    if kind == "parameter_exploring":
        env = envs.parameter_exploring(env, policy.controller, checks.in_range("gamma", plain["gamma"], 0.0, 1.0))
    if theta.get("run") is not None:
        content = storage.load_theta(storage.checkpoint(theta["run"], theta["at"]), policy)
        return env, policy, f"{theta['at']}:{content[:8]}", kind
    if theta["file"] is not None:
        return env, policy, f"file:{storage.load_theta(theta['file'], policy)[:8]}", kind
    return env, policy, f"seed={theta_seed}", kind


def seeds(cfg: DictConfig) -> dict[str, int]:
    """Return the root seeds of a configuration by the stream they begin."""
    critic = cfg.critic.seed if cfg.critic.seed is not None else cfg.seed
    return {"rollout": cfg.seed, "theta": cfg.theta.seed, "critic": critic, "reference": cfg.reference.seed}


def _seed(what: str, value: object) -> int:
    return checks.positive_int(what, value, least=0)


def _switch(what: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{what} must be true or false, but it is {value!r}; set {what}=true or {what}=false.")
    return value


# ---- Hydra ----------------------------------------------------------------------------------------------------------------


class JobLog(Callback):
    """Says on the spot how a job of a multirun failed: bad input as its sentence, anything else with its traceback.

    Hydra itself shows the first failure only, and only after the last job.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Log a failed job.

        Args:
            config: composed configuration with Hydra's own node.
            job_return: what the job returned or raised.
            **kwargs: what later versions of Hydra may add.
        """
        if job_return.status != JobStatus.FAILED or config.hydra.mode != RunMode.MULTIRUN:
            return  # a single run raises what was wrong
        error = job_return._return_value  # the property would raise it
        name = f"Job {config.hydra.job.num} ({' '.join(job_return.overrides or [])})"
        if isinstance(error, InputError):
            log.error("%s: %s", name, error)
        else:
            log.error("%s failed.", name, exc_info=error)


def refuse_out_in_multirun(words: Iterable[str]) -> None:
    """Refuse ``out=`` together with ``-m`` before Hydra writes anything.

    Args:
        words: the command line after the script's name.

    Raises:
        InputError: if both are there.
    """
    words = list(words)
    sweeping = any(w == "-m" or w.startswith("--m") or w.lower() == "hydra.mode=multirun" for w in words)
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        if sweeping and key == "out" and value not in ("", "null"):
            raise InputError(
                f"No out= was expected in a multirun, whose jobs would share one folder, but {word} came; leave it out or set "
                "hydra.sweep.dir= to choose where the jobs' folders go."
            )
