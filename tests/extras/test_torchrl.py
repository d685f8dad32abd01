"""GAE, TD residual, k-step advantages, returns and λ-returns against torchrl's value functions, in float64.

torchrl keeps ``done`` (the recursion stops) apart from ``terminated`` (nothing follows). Its TD(λ) minus V is GAE only because
``next_state_value[t]`` is ``state_value[t + 1]`` inside an episode, as in every batch here.
"""

from dataclasses import replace

import pytest
import ragged
import torch
from ragged import SHAPES, apart, close
from tensordict import TensorDict
from torchrl.data import MultiStep
from torchrl.objectives.value import functional

from varlab import estimators

EXACT = 1e-12
#: torchrl's vectorised forms leave out powers of γλ below 1e-7; at λ = 0 they raise IndexError (0.14.1).
VECTORISED = 1e-6
GAMMAS = (0.97, 0.5)
LAMBDAS = (0.0, 0.3, 0.95, 1.0)


def phi(batch, grid, name, **settings):
    return grid.of(estimators.make(name, **settings).phi(batch))


def gae(grid, gamma, lam, vectorised=False, **other):
    """torchrl's (advantage, value target) of the grid, or of one with other tensors."""
    call = functional.vec_generalized_advantage_estimate if vectorised else functional.generalized_advantage_estimate
    g = replace(grid, **other)
    return call(gamma, lam, g.value, g.following, g.reward, g.done, g.over)


@pytest.fixture(autouse=True)
def double():
    """torchrl rounds γ to the default dtype (γ times an integer mask), whatever the dtype of the rewards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_the_batches_hold_every_kind_of_end(shape):
    ends = ragged.count_ends(*ragged.make(shape, 0.97))
    if shape[0] == 1:
        assert min(ends[:3]) >= 1 and sum(ends) >= 10
    else:
        assert min(ends) >= 1 and sum(ends) >= 20


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gae_and_its_value_target(shape, gamma, lam):
    batch, grid = ragged.make(shape, gamma)
    mine = phi(batch, grid, "gae", lam=lam)
    for vectorised, tolerance in ((False, EXACT), (True, VECTORISED))[: 1 + (lam > 0)]:
        advantage, target = gae(grid, gamma, lam, vectorised=vectorised)
        assert advantage.dtype == torch.float64
        close(mine, advantage, tolerance)
        close(mine + grid.value, target, tolerance)


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gae_plus_v_is_the_lambda_return(shape, gamma, lam):
    batch, grid = ragged.make(shape, gamma)
    mine = phi(batch, grid, "gae", lam=lam)
    given = (grid.following, grid.reward, grid.done, grid.over)
    close(mine + grid.value, functional.td_lambda_return_estimate(gamma, lam, *given), EXACT)
    close(mine, functional.td_lambda_advantage_estimate(gamma, lam, grid.value, *given), EXACT)
    if lam > 0:
        close(mine + grid.value, functional.vec_td_lambda_return_estimate(gamma, lam, *given), VECTORISED)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_td_residual_is_td0(shape, gamma):
    batch, grid = ragged.make(shape, gamma)
    mine = phi(batch, grid, "td_residual")
    close(mine, functional.td0_advantage_estimate(gamma, grid.value, grid.following, grid.reward, grid.over), EXACT)
    close(mine + grid.value, functional.td0_return_estimate(gamma, grid.following, grid.reward, grid.over), EXACT)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_reward_to_go_is_td1(shape, gamma):
    """With the value of the cut observation: TD(1); without it: the plain sum of what was paid."""
    batch, grid = ragged.make(shape, gamma)
    mine = phi(batch, grid, "reward_to_go")
    given = (grid.following, grid.reward, grid.done, grid.over)
    close(mine, functional.td1_return_estimate(gamma, *given), EXACT)
    close(mine, functional.vec_td1_return_estimate(gamma, *given), VECTORISED)
    close(phi(batch, grid, "value_baseline"), functional.td1_advantage_estimate(gamma, grid.value, *given), EXACT)

    plain, same = ragged.make(shape, gamma, at_cut="terminal")
    assert torch.equal(same.reward, grid.reward)
    close(phi(plain, grid, "reward_to_go"), functional.reward2go(grid.reward, grid.done, gamma), VECTORISED)
    assert apart(mine, phi(plain, grid, "reward_to_go")) > 1e-2


@pytest.mark.parametrize("k", (1, 2, 3, 5, 50))
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_n_step_is_multi_step(shape, gamma, k):
    """torchrl's MultiStep gives Σ_{j<k} γ^j r_{t+j}, what is carried beside the k-th next observation, and how far it is."""
    batch, grid = ragged.make(shape, gamma)
    after = {"reward": grid.reward, "done": grid.done, "terminated": grid.over, "value": grid.following}
    after["nothing"] = grid.over.double()  # flags stay at their step, other entries move to the k-th
    rows, steps, _ = grid.reward.shape
    given = TensorDict({"next": TensorDict(after, batch_size=[rows, steps])}, batch_size=[rows, steps])
    made = MultiStep(gamma, k)(given)
    factor = gamma ** made["steps_to_next_obs"].reshape(rows, steps, 1).double()
    target = made["next", "reward"] + factor * made["next", "value"] * (1.0 - made["next", "nothing"])
    close(phi(batch, grid, "n_step", k=k), target - grid.value, EXACT)


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_other_rules_at_a_cut(shape, lam):
    """``terminal``: every end is a termination. ``wrong_state``: another value follows the cut."""
    batch, grid = ragged.make(shape, 0.97, at_cut="terminal")
    close(phi(batch, grid, "gae", lam=lam), gae(grid, 0.97, lam, over=grid.done)[0], EXACT)
    batch, grid = ragged.make(shape, 0.97, at_cut="wrong_state")
    following = grid.following.flatten().clone()
    following[batch.traj.last_row] = batch.values.v_stale
    close(phi(batch, grid, "gae", lam=lam), gae(grid, 0.97, lam, following=grid.of(following))[0], EXACT)


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_mistakes_are_seen(shape, lam):
    """Values shifted by one step, terminations taken for truncations, and the reverse: all more than a hundredth apart."""
    batch, grid = ragged.make(shape, 0.97)
    mine = phi(batch, grid, "gae", lam=lam)
    mistakes = {
        "V_t of the step before": {"value": grid.of(batch.values.v.roll(1))},
        "V_{t+1} of the step after": {"following": grid.of(grid.following.flatten().roll(-1))},
        "termination as truncation": {"over": torch.zeros_like(grid.over)},
        "truncation as termination": {"over": grid.done},
    }
    for mistake, given in mistakes.items():
        assert apart(gae(grid, 0.97, lam, **given)[0], mine) > 1e-2, mistake


@pytest.mark.parametrize("shape", SHAPES)
def test_the_lambda_return_minus_v_is_gae_only_where_the_next_value_is_the_value_of_the_next_step(shape):
    """With other values inside an episode, torchrl's two forms part, so the agreement above says something of the batches."""
    batch, grid = ragged.make(shape, 0.97)
    following = grid.following + torch.randn(grid.following.shape, generator=torch.Generator().manual_seed(1))
    other = functional.td_lambda_advantage_estimate(0.97, 0.5, grid.value, following, grid.reward, grid.done, grid.over)
    assert apart(other, gae(grid, 0.97, 0.5, following=following)[0]) > 1e-2
