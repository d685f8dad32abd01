"""What control variates do to the variance on linear systems, with exact Q: every moment by quadrature."""

import pytest
import torch
from gaussian_quadrature import Paths
from row_gradients import assembled, close, each

from varlab import policies
from varlab.envs import lqg
from varlab.values.linear_quadratic import QuadraticValues
from varlab.values.linear_quadratic import gradient as exact_gradient


def ratios(seed, log_std):
    """Exact variances on a linear system of one dimension and three steps, in units of that of value_baseline."""
    env = lqg.random_system(3, seed=seed, state_dim=1, action_dim=1)
    policy = policies.prepare(policies.make("linear", env, theta_seed=seed), torch.float64, torch.device("cpu"))
    with torch.no_grad():
        policy.log_std.value.fill_(log_std)
    source, paths = QuadraticValues.of(env, policy, 1.0), Paths(env.system, policy, 3)
    phi = ["value_baseline", "q_prop", "state_action_control_variate(nodes=3)"]
    g = each(policy, assembled(policy, phi, paths.trajectories, source), 4096)
    mean = torch.einsum("n,nkp->kp", paths.weight, g)
    close(mean, exact_gradient(env, policy, 1.0)[0].expand_as(mean), 1e-9)
    variance = torch.einsum("n,nkp->k", paths.weight, (g - mean).square())
    return (variance[1:] / variance[0]).tolist()


@pytest.mark.parametrize(("log_std", "known"), [(-1.5, (0.7287, 0.7087)), (-0.5, (0.5721, 0.3690)), (0.5, (0.6994, 0.1523))])
def test_on_a_linear_system_it_lowers_the_variance_and_q_itself_lowers_it_more(log_std, known):
    """The curvature of Q that the expansion leaves out counts the more, the wider the policy."""
    found = ratios(1, log_std)
    assert found == pytest.approx(known, abs=1e-4)
    assert found[1] < found[0] < 1
