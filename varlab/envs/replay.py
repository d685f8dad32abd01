"""Whether a world can be gone on with from a saved state: a restored state must replay its episode bit for bit."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from torch import Tensor

from varlab import checks, rng
from varlab.capabilities import Cloneable, Simulator
from varlab.envs.base import Environment

#: Episodes, steps before the state is saved, and steps that are compared.
EPISODES, BEFORE, COMPARED = 4, 5, 8

Record = list[tuple[Tensor, Tensor, Tensor]]


def check_replay(env: Environment, device: torch.device) -> Cloneable:
    """Check that restored states replay: a copy that silently starts afresh, or shares its state, would give wrong values.

    A few episodes are played with random actions to their middle and saved. Then the original goes on, and so does a restored
    copy, before it and once more after it, with the same actions and the same seed of the world: observations, rewards and
    terminations must be the same, to the last bit.

    Args:
        env: the world.
        device: of its simulator.

    Returns:
        A simulator whose states can be restored.

    Raises:
        InputError: if the world has no states to save, or they do not replay.
    """
    simulator = env.make_simulator(device)
    try:
        wrong = "its simulator has none" if not isinstance(simulator, Cloneable) else _difference(env, simulator, device)
    except checks.InputError:
        raise  # what is wrong with the world itself
    except Exception as error:  # whatever a foreign environment raises when it is copied
        said = f": {str(error).strip()}".splitlines()[0] if str(error).strip() else ""
        wrong = f"a copy raised {type(error).__name__}{said}"
    if wrong:
        raise checks.InputError(
            f"States that can be saved and restored were expected of {env.name} for values=cloning, but they cannot be used "
            f"({wrong.rstrip('.')}); take values=critic instead."
        )
    return simulator


def _difference(env: Environment, simulator: Cloneable, device: torch.device) -> str:
    """Return the first difference between an episode and its replay in words, or nothing."""
    start, walk, world, after = rng.children(np.random.SeedSequence(0), 4)
    simulator.reset(EPISODES, start)
    played = _play(simulator, env, EPISODES, min(BEFORE, env.horizon - 1), walk, device)
    # Where all ended, the last state that some were alive in.
    before = len(played) - (bool(played[-1][2].all()) if played else 0)
    original, copied = env.make_simulator(device), simulator
    original.reset(EPISODES, start)
    played = _play(original, env, EPISODES, before, walk, device)
    live = int((~played[-1][2]).sum()) if played else EPISODES
    if live == 0:
        return "two episodes with the same seed and actions differ"
    saved, steps = original.snapshot(), min(COMPARED, env.horizon - before)

    def go_on() -> Record:
        copied.restore(saved, world)
        return _play(copied, env, live, steps, after, device)

    early = go_on()
    original.reseed(world)
    truth = _play(original, env, live, steps, after, device)
    for replay in (early, go_on()):
        for t, (ours, theirs) in enumerate(zip(truth, replay, strict=False), before):
            for what, a, b in zip(("observation", "reward", "termination"), ours, theirs, strict=True):
                if a.shape != b.shape or not torch.equal(a, b):
                    return f"the {what} after step {t} of a restored episode is not that of the episode itself"
    return ""


def _play(
    simulator: Simulator, env: Environment, live: int, steps: int, seed: np.random.SeedSequence, device: torch.device
) -> Record:
    """Take up to ``steps`` random actions in ``live`` episodes; return (observation, reward, termination) of each step."""
    generator, made = rng.numpy_generator(seed), []
    for _ in range(steps):
        obs, reward, end = simulator.step(_actions(env.action_space, live, generator).to(device))
        made.append((obs.clone(), reward, end))
        simulator.keep(~end)
        live = int((~end).sum())
        if live == 0:
            break
    return made


def _actions(space: gymnasium.Space, n: int, generator: np.random.Generator) -> Tensor:
    if isinstance(space, gymnasium.spaces.Discrete):
        return torch.from_numpy(generator.integers(int(space.n), size=n))
    noise = generator.standard_normal((n, *space.shape))
    return torch.from_numpy(np.clip(noise, space.low, space.high).astype(space.dtype))
