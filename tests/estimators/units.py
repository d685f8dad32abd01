"""Units of many trajectories, listed up to the order within groups: for Φ that do not look at it.

One order of each group stands for all of them and carries their probability, so that groups of 8 or 32 stay few. That a Φ does
not look at the order is checked against :mod:`contract`, which lists every tuple.
"""

import itertools
import math
from dataclasses import dataclass

import contract
import torch
from torch import Tensor

from varlab.types import Trajectories


@dataclass
class Units:
    """All units of ``groups`` groups of ``group`` trajectories that share their start, and the probability of each."""

    world: contract.World
    traj: Trajectories
    probability: Tensor
    group: int
    unit: int

    @classmethod
    def of(cls, world, group, groups=1):
        start = world.paths.traj.state[world.paths.traj.offsets[:-1]]
        index, share = [], []
        for s in start.unique():
            members = (start == s).nonzero().flatten().tolist()
            mass = float(world.probability[members].sum())
            for each in itertools.combinations_with_replacement(members, group):
                orders = math.factorial(group) // math.prod(math.factorial(each.count(i)) for i in set(each))
                index.append(each)
                share.append(mass * orders * math.prod(float(world.probability[i]) / mass for i in each))
        index, share = torch.tensor(index), torch.tensor(share, dtype=torch.float64)
        tuples = torch.cartesian_prod(*[torch.arange(len(index))] * groups).view(-1, groups)
        probability = share[tuples].prod(1)
        assert abs(float(probability.sum()) - 1) < 1e-9
        return cls(world, contract.select(world.paths.traj, index[tuples].flatten()), probability, group, group * groups)

    def gradients(self, estimator, source=None, gamma=1.0, **settings):
        """ĝ of every unit, [U, P]; exact values unless a source is given."""
        source = source or self.world.exact(gamma)
        size = {"group": self.group, "unit": self.unit}
        return contract.gradients(estimator, self.world, self.traj, source, gamma, **size, **settings)

    def mean(self, *arguments, **settings):
        """E ĝ [P]."""
        return self.probability @ self.gradients(*arguments, **settings)

    def variance(self, *arguments, **settings):
        """Trajectories in a unit times tr Cov ĝ."""
        g = self.gradients(*arguments, **settings)
        return self.unit * float(self.probability @ (g - self.probability @ g).square().sum(1))
