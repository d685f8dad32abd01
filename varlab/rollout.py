"""(environment, policy, n, stream) → Trajectories: exactly n i.i.d. episodes, every one begun before its length is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from varlab import capabilities, checks, rng
from varlab.capabilities import Saved, Snapshots
from varlab.envs.base import Environment
from varlab.layout import Layout
from varlab.policies.base import CategoricalRows, sample
from varlab.policies.networks import SoftmaxTable
from varlab.types import Simulator, Trajectories


@torch.no_grad()
def rollout(
    env: Environment,
    policy: nn.Module,
    n: int,
    seed: np.random.SeedSequence,
    *,
    cut: int | None = None,
    simulator: Simulator | None = None,
    device: torch.device | str = "cpu",
    first_trajectory: int = 0,
    group: int = 1,
    snapshots: bool = False,
) -> Trajectories:
    """Sample n independent episodes of at most ``cut`` steps as one batch.

    All n episodes begin together and each is kept to its end, so that none is favoured for being short. Finished episodes
    leave the batch: the cost follows the number of steps taken.

    Args:
        env: the world.
        policy: gives a Distribution for a batch of observations.
        n: number of episodes.
        seed: seed sequence of this part; world and actions draw from two children of it.
        cut: L ≤ H, where sampling ends; H if None.
        simulator: one to use again, else a fresh one is made.
        device: where tensors live.
        first_trajectory: number of the first episode, for messages.
        group: how many consecutive episodes begin in one state.
        snapshots: whether to save the state of the world at every step, so that others can go on from there.

    Returns:
        The n trajectories.

    Raises:
        InputError: for a cut beyond the horizon, or NaN and infinities from environment or policy.
    """
    device = torch.device(device)
    length = env.horizon if cut is None else checks.positive_int("cut", cut)
    if length > env.horizon:
        raise checks.InputError(f"A cut of at most the horizon {env.horizon} was expected, but it is {length}; lower cut.")
    simulator = simulator or env.make_simulator(device)
    world, actions = rng.children(seed, 2)
    generator = rng.torch_generator(actions, device)
    obs = simulator.reset(n, world) if group == 1 else simulator.reset(n, world, group)
    live = torch.arange(n, device=device)
    # A finite MDP that shows features instead of the state's index keeps the index too: exact values are looked up by it.
    hidden_state = env.finite is not None and env.finite.observations is not None
    pieces: dict[str, list[torch.Tensor]] = {"obs": [], "action": [], "reward": [], "episode": []}
    if hidden_state:
        pieces["state"] = []
        last_state = torch.zeros(n, dtype=torch.int64, device=device)
    saved = []
    last_obs = torch.empty_like(obs)
    terminated = torch.zeros(n, dtype=torch.bool, device=device)
    table = _table(policy, env, first_trajectory, device)
    for t in range(length):
        if table is None:
            distribution = _distribution(policy, obs, env, first_trajectory, t, live)
            action = sample(distribution, generator)
        else:
            distribution, action = table.distribution, table.draw(obs, generator)
        if t == 0:
            _check_action(distribution, action, env)
        if hidden_state:
            pieces["state"].append(simulator.state)
        if snapshots:
            saved.append(simulator.snapshot())
        seen, (obs, reward, end) = obs, simulator.step(action)
        if (spent := getattr(simulator, "spent", None)) is not None:
            pieces.setdefault("spent", []).append(spent)
        if hidden_state:
            last_state[live] = simulator.state
        for name, piece in (("obs", seen), ("action", action), ("reward", reward), ("episode", live)):
            pieces[name].append(piece)
        if t == length - 1:
            last_obs[live], terminated[live] = obs, end
            break
        if bool(end.any()):
            over, alive = end.nonzero().squeeze(1), ~end
            last_obs[live[over]], terminated[live[over]] = obs[over], True
            kept = alive.nonzero().squeeze(1)
            obs, live = obs.index_select(0, kept), live.index_select(0, kept)
            simulator.keep(alive)
            if live.shape[0] == 0:
                break
        elif getattr(simulator, "cut_short", None):
            simulator.keep(~end)
    if env.finite is None:
        last_state = None
    elif not hidden_state:
        last_state = last_obs
    last_saved = capabilities.put(None, live, simulator.snapshot(), n) if snapshots and length < env.horizon else None
    traj = replace(_assemble(pieces, n, terminated, last_obs, last_state, saved, last_saved, env), seed=seed)
    if env.finite is not None and not hidden_state:
        traj = replace(traj, state=traj.obs)
    # Checked once for the whole part: a NaN cannot leave the episode in which it arose.
    checks.finite_rows("reward", traj.reward, env.name, first_trajectory, traj.time, traj.episode)
    checks.finite_rows("observation", traj.obs, env.name, first_trajectory, traj.time, traj.episode)
    checks.finite_rows("observation", last_obs, env.name, first_trajectory, traj.length, torch.arange(n, device=device))
    return traj


def _table(policy: nn.Module, env: Environment, first: int, device: torch.device) -> CategoricalRows | None:
    """A softmax table's distribution in all states at once, where states are what it sees: made once, not in every step."""
    if type(policy) is not SoftmaxTable or not env.discrete_observations:
        return None
    states = torch.arange(env.num_features, device=device)
    return CategoricalRows(_distribution(policy, states, env, first, 0, states))


def _assemble(
    pieces: dict[str, list[torch.Tensor]],
    n: int,
    terminated: torch.Tensor,
    last_obs: torch.Tensor,
    last_state: torch.Tensor | None,
    saved: list[Saved],
    last_saved: Saved | None,
    env: Environment,
) -> Trajectories:
    """Put time-major pieces into flat episodes: step t of episode i is row offsets[i] + t."""
    steps = torch.tensor([piece.shape[0] for piece in pieces["episode"]], device=terminated.device)
    episode = torch.cat(pieces["episode"])
    offsets = torch.zeros(n + 1, dtype=torch.int64, device=terminated.device)
    torch.cumsum(torch.bincount(episode, minlength=n), 0, out=offsets[1:])
    rows = offsets[episode] + torch.arange(steps.shape[0], device=steps.device).repeat_interleave(steps)
    states = Snapshots(capabilities.put(None, rows, capabilities.cat(saved), len(rows)), last_saved) if saved else None
    joined = {name: torch.cat(parts) for name, parts in pieces.items() if name != "episode"}
    spent = joined.pop("spent", None)
    return Trajectories(
        **{name: torch.empty_like(x).index_copy_(0, rows, x) for name, x in joined.items()},
        offsets=offsets,
        terminated=terminated,
        truncated=~terminated,
        last_obs=last_obs,
        horizon=env.horizon,
        last_state=last_state,
        env=env.name,
        spent=None if spent is None else torch.zeros_like(offsets[:-1]).index_add_(0, episode, spent),
        snapshots=states,
    )


def _distribution(
    policy: nn.Module, obs: torch.Tensor, env: Environment, first: int, t: int, live: torch.Tensor
) -> torch.distributions.Distribution:
    """Call the policy.

    Returns:
        Its distribution over actions.

    Raises:
        InputError: saying in words what it should have given.
    """
    version = obs._version
    try:
        distribution = policy(obs)
    except ValueError as error:  # torch's own argument checks: NaN logits or scales
        checks.finite_rows("observation", obs, env.name, first, t, live)
        raise checks.InputError(
            f"A valid action distribution was expected from the policy on {env.name}, but at trajectory {first + int(live[0])}, "
            f"step {t} torch said: {str(error).splitlines()[0]}; look for NaN in θ or in the observations."
        ) from error
    if not isinstance(distribution, torch.distributions.Distribution):
        raise checks.InputError(
            f"A policy whose forward gives a torch Distribution was expected, but it gave {type(distribution).__name__}; "
            "wrap its output, for example torch.distributions.Categorical(logits=output)."
        )
    if obs._version != version:
        raise checks.InputError(
            f"A policy that leaves its observations as they are was expected on {env.name}, but its forward changed them in "
            "place; write obs = obs - mean, not obs -= mean."
        )
    return distribution


def _check_action(distribution: torch.distributions.Distribution, action: torch.Tensor, env: Environment) -> None:
    """Check that the policy's actions are those of the environment.

    Raises:
        InputError: if shape, kind or number of actions differ.
    """
    if env.discrete_actions:
        wanted = f"whole numbers 0 … {env.num_actions - 1} of shape [n]"
        probs = getattr(distribution, "probs", None)
        offered = probs.shape[-1] if probs is not None and probs.dim() == 2 else None
        fits = action.dim() == 1 and not action.is_floating_point() and offered in (None, env.num_actions)
        fits = fits and 0 <= int(action.min()) and int(action.max()) < env.num_actions
    else:
        wanted = f"numbers of shape [n, {env.num_actions}]"
        offered, fits = None, action.shape[1:] == (env.num_actions,)
    if not fits:
        came = f"{action.dtype} of shape {['n', *action.shape[1:]]}".replace("torch.", "").replace("'", "")
        raise checks.InputError(
            f"Actions that are {wanted} were expected from the policy on {env.name}, but {type(distribution).__name__} gave "
            f"{came}{f' over {offered} actions' if offered else ''}; give the last layer one output per action."
        )


def draws(layout: Layout, streams: rng.Streams, stream: str) -> Iterator[tuple[int, int, int, np.random.SeedSequence]]:
    """Name the parts of a stream.

    Args:
        layout: how n falls into blocks and parts.
        streams: the root seed.
        stream: name of the stream.

    Yields:
        (index of the block within the layout, number of the first trajectory, trajectories, seed) of each part, in order.
    """
    first = layout.before
    for b in range(layout.blocks):
        for draw in layout.parts(b):
            yield b, first, draw.n, streams.sequence(stream, draw.block, draw.part)
            first += draw.n


def parts(
    env: Environment,
    policy: nn.Module,
    layout: Layout,
    streams: rng.Streams,
    stream: str,
    *,
    cut: int | None = None,
    device: torch.device | str = "cpu",
    group: int = 1,
    snapshots: bool = False,
) -> Iterator[tuple[int, Trajectories]]:
    """Sample a stream block by block, part by part.

    Args:
        env: the world.
        policy: gives a Distribution for a batch of observations.
        layout: how n falls into blocks and parts.
        streams: the root seed.
        stream: name of the stream.
        cut: L, where sampling ends.
        device: where tensors live.
        group: how many consecutive episodes begin in one state.
        snapshots: whether to save the state of the world at every step.

    Yields:
        (index of the block within the layout, trajectories of one part), in stream order.
    """
    simulator = env.make_simulator(torch.device(device))
    same = {"cut": cut, "simulator": simulator, "device": device, "group": group, "snapshots": snapshots}
    for b, first, n, seed in draws(layout, streams, stream):
        yield b, rollout(env, policy, n, seed, first_trajectory=first, **same)
