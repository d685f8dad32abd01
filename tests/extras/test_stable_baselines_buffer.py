"""GAE, λ-returns and k-step advantages against the buffers of Stable-Baselines3, and against a rollout that it collects itself.

Its rollout buffer knows terminations and the end of a row. A truncation inside a row it turns into a termination whose last
reward holds γ V(last observation); :func:`fill` does the same, and the collected rollout shows that this is its rule.

Its buffers are float32. The random numbers here are float32 too, so that both sides hold the same ones; what is left is the
rounding of its sums, up to 4e-7 of the largest entry (six units of 2⁻²⁴), and the tolerance is 1e-6. With the rollout buffer's
arrays in float64 the same code agrees to 1e-12.
"""

import gymnasium
import numpy as np
import pytest
import ragged
import torch
from gymnasium import spaces
from ragged import SHAPES, apart, close
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import NStepReplayBuffer, RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

from varlab import estimators
from varlab.estimators import Batch
from varlab.types import Trajectories, Values

TOLERANCE = {np.float32: 1e-6, np.float64: 1e-12}
GAMMAS = (0.97, 0.5)
LAMBDAS = (0.0, 0.3, 0.95, 1.0)
SPACES = (spaces.Box(-np.inf, np.inf, (2,), np.float64), spaces.Discrete(2))


def time_first(x):
    """[rows, steps, 1] to the [steps, rows] of the buffers."""
    return x[..., 0].T.numpy()


def fill(grid, gamma, lam, dtype, value=None, over=None):
    """Return a buffer that holds the grid and has computed its advantages and returns."""
    rows, steps, _ = grid.reward.shape
    value, over = (time_first(x) for x in (grid.value if value is None else value, grid.over if over is None else over))
    reward, following, done = (time_first(x) for x in (grid.reward, grid.following, grid.done))
    buffer = RolloutBuffer(steps, *SPACES, device="cpu", gae_lambda=lam, gamma=gamma, n_envs=rows)
    for name in ("rewards", "values", "advantages", "episode_starts"):
        setattr(buffer, name, getattr(buffer, name).astype(dtype))
    for t in range(steps):
        paid = reward[t].astype(dtype)
        if t < steps - 1:
            cut = done[t] & ~over[t]
            paid[cut] += gamma * following[t][cut].astype(dtype)
        start = np.ones(rows) if t == 0 else done[t - 1]
        nothing = torch.zeros(rows)
        buffer.add(np.zeros((rows, 2)), np.zeros((rows, 1)), paid, start, torch.from_numpy(value[t].astype(dtype)), nothing)
    buffer.compute_returns_and_advantage(torch.from_numpy(following[-1].astype(dtype)), over[-1])
    return buffer


def rows_first(grid, made):
    """[steps, rows] to the form of the grid."""
    return grid.of(torch.from_numpy(made.T.copy()))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gae_and_the_lambda_return(shape, gamma, lam, dtype):
    batch, grid = ragged.make(shape, gamma, dtype=torch.float32)
    buffer = fill(grid, gamma, lam, dtype)
    assert buffer.advantages.dtype == buffer.returns.dtype == dtype
    mine = grid.of(estimators.make("gae", lam=lam).phi(batch))
    close(mine, rows_first(grid, buffer.advantages), TOLERANCE[dtype])
    close(mine + grid.value, rows_first(grid, buffer.returns), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_td_residual_and_reward_to_go_are_its_two_ends(shape, gamma, dtype):
    """λ = 0 and λ = 1."""
    batch, grid = ragged.make(shape, gamma, dtype=torch.float32)
    residual = grid.of(estimators.make("td_residual").phi(batch))
    close(residual, rows_first(grid, fill(grid, gamma, 0.0, dtype).advantages), TOLERANCE[dtype])
    to_go = grid.of(estimators.make("reward_to_go").phi(batch))
    close(to_go, rows_first(grid, fill(grid, gamma, 1.0, dtype).returns), TOLERANCE[dtype])


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_end_a_termination_is_the_rule_terminal(shape, lam):
    batch, grid = ragged.make(shape, 0.97, at_cut="terminal", dtype=torch.float32)
    mine = grid.of(estimators.make("gae", lam=lam).phi(batch))
    close(mine, rows_first(grid, fill(grid, 0.97, lam, np.float64, over=grid.done).advantages), 1e-12)


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_mistakes_are_seen(shape, lam):
    batch, grid = ragged.make(shape, 0.97, dtype=torch.float32)
    mine = grid.of(estimators.make("gae", lam=lam).phi(batch))
    mistakes = {
        "V_t of the step before": {"value": grid.of(batch.values.v.roll(1))},
        "termination as truncation": {"over": torch.zeros_like(grid.over)},
        "truncation as termination": {"over": grid.done},
    }
    for mistake, given in mistakes.items():
        assert apart(rows_first(grid, fill(grid, 0.97, lam, np.float32, **given).advantages), mine) > 1e-2, mistake


@pytest.mark.parametrize("k", (1, 2, 3, 5, 50))
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_n_step_is_its_replay_buffer(shape, gamma, k):
    """It draws transitions at random: the observation holds the row, the next observation the row's end and its value."""
    batch, grid = ragged.make(shape, gamma, dtype=torch.float32)
    m = batch.traj.steps
    reward, value, following, done, over = (x.flatten().numpy() for x in vars(grid).values())
    buffer = NStepReplayBuffer(m + 1, *SPACES, device="cpu", n_envs=1, n_steps=k, gamma=gamma)
    for i in range(m):
        here, there = np.array([[i, 0.0]]), np.array([[i, following[i]]])
        info = [{"TimeLimit.truncated": bool(done[i] and not over[i])}]
        buffer.add(here, there, np.zeros((1, 1)), reward[i : i + 1], done[i : i + 1], info)
    drawn = buffer.sample(20 * m)
    row = drawn.observations[:, 0].long()
    assert len(row.unique()) > 0.99 * m
    made = drawn.rewards + drawn.discounts * (1.0 - drawn.dones) * drawn.next_observations[:, 1:]
    mine = estimators.make("n_step", k=k).phi(batch) + batch.values.v
    close(mine[row], made[:, 0])
    assert apart(mine[(row + 1) % m], made[:, 0]) > 1e-2


class Scripted(gymnasium.Env):
    """Random observations and rewards; episodes of random length that end or are truncated; keeps what it gave."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, seed):
        self.draw = np.random.default_rng(seed)
        self.given = []

    def observe(self):
        self.obs = self.draw.standard_normal(3).astype(np.float32)
        return self.obs

    def reset(self, *, seed=None, options=None):
        self.left = int(self.draw.integers(1, 9))
        return self.observe(), {}

    def step(self, action):
        before, reward = self.obs, float(np.float32(self.draw.standard_normal()))
        self.left -= 1
        ends = bool(self.draw.random() < 0.5)
        terminated, truncated = self.left == 0 and ends, self.left == 0 and not ends
        self.given.append((before, reward, terminated, truncated, self.observe()))
        return self.obs, reward, terminated, truncated, {}


def collected(gamma, lam, rows=4, steps=50, seed=0):
    """Return (model after one rollout, what its environments gave)."""
    envs = [Scripted([seed, row]) for row in range(rows)]
    vector = DummyVecEnv([lambda env=env: env for env in envs])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = A2C("MlpPolicy", vector, n_steps=steps, gamma=gamma, gae_lambda=lam, device="cpu")
        _, callback = model._setup_learn(rows * steps)
        assert model.collect_rollouts(vector, callback, model.rollout_buffer, steps)
    return model, [env.given for env in envs]


def trajectories(given):
    """Cut each environment's steps into episodes; the last one is cut by the end of the row."""
    episodes = []
    for row in given:
        first = 0
        for t, (_, _, terminated, truncated, _) in enumerate(row, 1):
            if terminated or truncated or t == len(row):
                episodes.append(row[first:t])
                first = t
    steps = [step for episode in episodes for step in episode]
    ends = [episode[-1] for episode in episodes]
    terminated = torch.tensor([end[2] for end in ends])
    return Trajectories(
        obs=torch.tensor(np.array([step[0] for step in steps])),
        action=torch.zeros(len(steps), dtype=torch.int64),
        reward=torch.tensor([step[1] for step in steps], dtype=torch.float64),
        offsets=torch.tensor([0, *np.cumsum([len(episode) for episode in episodes])]),
        terminated=terminated,
        truncated=~terminated,
        last_obs=torch.tensor(np.array([end[4] for end in ends])),
        horizon=len(given[0]) + 1,
    )


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_a_rollout_that_it_collects(gamma, lam):
    """Its own environments, truncations, critic and buffer, against the same steps as trajectories with the same critic."""
    model, given = collected(gamma, lam)
    traj = trajectories(given)
    assert sum(step[2] for row in given for step in row) > 10 and sum(step[3] for row in given for step in row) > 10
    with torch.no_grad():
        v, v_last = (model.policy.predict_values(obs)[:, 0].double() for obs in (traj.obs, traj.last_obs))
    batch = Batch(traj, Values(v=v, v_last=v_last), gamma)
    mine = estimators.make("gae", lam=lam).phi(batch)
    buffer = model.rollout_buffer
    close(mine, torch.from_numpy(buffer.advantages.T.flatten()))
    close(mine + v, torch.from_numpy(buffer.returns.T.flatten()))
    terminal = estimators.make("gae", lam=lam).phi(Batch(traj, Values(v=v, v_last=v_last), gamma, "terminal"))
    assert apart(terminal, mine) > 1e-2
