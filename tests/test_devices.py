"""One code path on every device: nothing inside a chunk waits for the device, and an accelerator finds what the CPU finds."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import varlab
from varlab import envs, policies
from varlab.analysis.moments import Block
from varlab.plans import plan
from varlab.preparation import Preparation

#: Operations whose result the program needs at once, so that it would wait for an accelerator.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

CASES = {
    "mlp": ("CartPole-v1", "mlp", ("total_return", "gae(lam=0.9)"), {}),
    "gaussian mlp": ("varlab/PointMass-v0", "mlp", ("total_return", "value_baseline"), {}),
    "softmax table": ("FrozenLake-v1", "softmax_table", ("total_return", "q_value"), {}),
    "every action": ("FrozenLake-v1", "softmax_table", ("total_return", "all_action"), {}),
    "units": ("CartPole-v1", "mlp", ("total_return", "leave_one_out"), {"group_size": 4}),
}


class Waits(TorchDispatchMode):
    """Keeps the names of operations that would wait."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(x is not None and x.dtype == torch.bool for x in args[1])
        if name in WAITING or masks:
            self.found.append(name)
        return function(*args, **kwargs or {})


def prepared(case):
    world, policy, phi, settings = CASES[case]
    env = envs.make(world, **({"horizon": 20} if world != "FrozenLake-v1" else {}))
    values = {"critic": varlab.values.CriticSettings(n=40, epochs=1)}
    return Preparation(plan(env, policies.make(policy, env), phi, n=400, pilot=40, **values, **settings))


@pytest.mark.parametrize("case", CASES)
def test_nothing_waits_for_the_device_inside_a_chunk(case):
    """Per part there are a few waits (lengths, finite numbers); per chunk there is none, so that they do not grow with chunks."""
    job = prepared(case)
    traj = job.sample("rollout", 40, 0, in_units=True)
    counts = []
    for chunk in (2 * job.unit, 10):
        made = list(job.terms(traj, together=2))
        center = torch.zeros(len(job.phi), job.scores.num_parameters, dtype=torch.float64)
        block, chunks = Block(center, center[:1], 0, per_parameter=True), 0
        with Waits() as waits:
            for _, scores, phi in job.cores.groups(made, chunk, 2, job.matrices):
                block.add(scores, phi)
                scores.products(phi)
                chunks += 1
        counts.append((chunks, sorted(waits.found)))
    assert counts[0][0] > counts[1][0] and counts[0][1] == counts[1][1]


def test_the_check_of_waits_can_fail():
    with Waits() as waits:
        x = torch.arange(4)
        _ = bool(x.any()), x[x > 1]
    assert {"_local_scalar_dense", "index"} <= set(waits.found) or "nonzero" in waits.found


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_an_accelerator_finds_what_the_cpu_finds(case):
    """Scores and moments of the same trajectories agree to rounding; measurements from other random numbers within intervals."""
    job = prepared(case)
    traj = job.sample("rollout", 400, 0, in_units=True)
    found = {}
    for device in ("cpu", "cuda"):
        world, policy, phi, settings = CASES[case]
        there = Preparation(plan(job.env, job.plan.policy, phi, n=400, pilot=40, dtype="float64", device=device,
            critic=varlab.values.CriticSettings(n=40, epochs=1), **settings))  # fmt: skip
        moved = traj if device == "cpu" else traj.to(device)
        center = torch.zeros(len(there.phi), there.scores.num_parameters, dtype=torch.float64, device=device)
        block = Block(center, center[:1], 0, per_parameter=True)
        for _, scores, weights in there.groups(moved):
            block.add(scores, weights)
        found[device] = (block.s1.cpu().numpy(), block.s2.cpu().numpy())
    for a, b in zip(found["cpu"], found["cuda"], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-9 * np.abs(a).max())
