"""V and Q by state cloning: at every visited step m continuations branch off from the saved state.

    V_t(s_t) ≈ (1/m) Σ_i Σ_{u=t}^{H−1} γ^{u−t} r_u^(i),   each from a copy of s_t under the policy, to the horizon or termination,

and Q_t(s_t, a_t) likewise with a_t as first action: unbiased given the state (and action), whatever the policy. The branches of V
are independent of those of Q, and both of what the trajectory itself did after t, so that a Φ linear in V and Q has the mean that
it has with exact values. Their randomness is part of the estimator, and so are their environment steps of its cost. Sources: the
vine procedure of Trust Region Policy Optimization (Schulman, Levine, Abbeel, Jordan, Moritz, 2015); VinePPO (Kazemnejad et al.,
2024), where V by branches takes the place of a critic.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import Tensor, nn

from varlab import checks, rng
from varlab.capabilities import Cloneable, Saved, Snapshots, take
from varlab.envs.base import Environment
from varlab.envs.replay import check_replay
from varlab.policies.base import sample
from varlab.types import Trajectories, Values

#: What branches are for: part of the key of their random numbers, so append, never renumber.
PURPOSES = {"v": 0, "q": 1, "q_nodes": 2, "v_last": 3, "v_stale": 4}
#: Branches of one tile, where a state is a row of a tensor: part of what random numbers follow from.
TILE = 2**16
#: Rules of nodes, likewise.
NODE_RULES = ("product", "coordinate")


def node_name(rule: str, j: int) -> str:
    """Return what :attr:`Cloning.spent` calls the branches from J nodes of a rule."""
    return f"q_nodes[{rule}:{j}]"


class Cloning:
    """Values by m continuations from every visited state; a source of values.

    It needs trajectories whose states were saved (``rollout(…, snapshots=True)``). Random numbers follow from the trajectories'
    own seed: the same trajectories get the same values.

    Attributes:
        source: ``cloning(m=10)``, the name that rows carry.
        snapshots: True: it needs saved states.
        spent: ``v``, ``q``, … → environment steps that its branches have taken since :meth:`restart`; nodes by :func:`node_name`.
    """

    snapshots = True

    def __init__(
        self,
        env: Environment,
        policy: nn.Module,
        m: int = 10,
        *,
        gamma: float = 1.0,
        at_cut: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Check that the world can be restored.

        Args:
            env: the world.
            policy: whose values they are.
            m: continuations from each state (and action, or node).
            gamma: discount γ.
            at_cut: rule at a cut, which says whether ``v_last`` (bootstrap) or ``v_stale`` (wrong_state) is needed; both if None.
            device: where tensors live.

        Raises:
            InputError: if m is not a positive whole number, or the world has no states that replay bit for bit.
        """
        checks.in_range("gamma", gamma, 0.0, 1.0)
        self.env, self.policy, self.gamma, self.at_cut = env, policy, gamma, at_cut
        self.m, self.device = checks.positive_int("continuations", m), torch.device(device)
        self.simulator: Cloneable = check_replay(env, self.device)
        self.source = f"cloning(m={self.m})"
        self.spent: Counter[str] = Counter()
        # What was made for the last trajectories, so that two Φ that ask for the same do not pay twice.
        self._made: tuple[Snapshots | None, dict[str, tuple[Tensor, Tensor]]] = (None, {})

    def restart(self) -> int:
        """Count steps from 0 again; return how many there were."""
        spent, self.spent = self.steps, Counter()
        return spent

    @property
    def steps(self) -> int:
        """Environment steps of all branches so far."""
        return sum(self.spent.values())

    @property
    def snapshots_at_once(self) -> int | None:
        """How many saved states may be kept at once, if they are large."""
        return getattr(self.simulator, "snapshots_at_once", None)

    def __call__(self, traj: Trajectories, need: frozenset[str]) -> Values:
        """Branch off at every visited step.

        Args:
            traj: M steps whose states were saved.
            need: which of ``v``, ``q`` and ``q_nodes`` are wanted.

        Returns:
            Values with standard errors. After the end of an episode, and at t = H, ``v_last`` and ``v_stale`` are 0.

        Raises:
            InputError: if no states were saved, or a branch met NaN or infinity.
        """
        if traj.snapshots is None or traj.seed is None:
            raise checks.InputError(
                f"Trajectories with saved states were expected for {self.source} on {traj.env}, but these have none; sample them "
                "by rollout(…, snapshots=True)."
            )
        before, states, obs, time = self.steps, traj.snapshots.steps, traj.obs, traj.time
        if self._made[0] is not traj.snapshots:
            self._made = (traj.snapshots, {})
        out: dict[str, Tensor] = {}
        if "v" in need:
            out["v"], out["v_se"] = self._mean("v", traj.seed, states, obs, time)
            out |= self._after_cut(traj)
        if "q" in need:
            out["q"], out["q_se"] = self._mean("q", traj.seed, states, obs, time, traj.action)
        if "q_nodes" in need:
            j = traj.nodes.weight.shape[1]
            rows = torch.arange(traj.steps, device=obs.device).repeat_interleave(j)
            first = traj.nodes.action.flatten(0, 1)
            out["q_nodes"] = self._mean(node_name(traj.nodes.rule, j), traj.seed, states, obs, time, first, rows)[0].view(-1, j)
        return Values(**out, source=self.source, steps=self.steps - before)

    def _after_cut(self, traj: Trajectories) -> dict[str, Tensor]:
        """V_T at the last state and at the one before it, for the episodes alive at a cut T < H."""
        alive = (traj.truncated & (traj.length < traj.horizon)).nonzero()[:, 0]
        wanted = {"bootstrap": ("v_last",), "wrong_state": ("v_stale",), "terminal": ()}.get(self.at_cut, ("v_last", "v_stale"))
        out = {name: torch.zeros(len(traj), dtype=torch.float64, device=traj.reward.device) for name in wanted}
        for name in wanted if len(alive) else ():
            last = name == "v_last"
            rows = alive if last else traj.last_row[alive]
            states, obs = (traj.snapshots.last, traj.last_obs) if last else (traj.snapshots.steps, traj.obs)
            out[name][alive], _ = self._mean(name, traj.seed, take(states, rows), obs[rows], traj.length[alive])
        return out

    def _mean(
        self,
        purpose: str,
        seed: np.random.SeedSequence,
        states: Saved,
        obs: Tensor,
        time: Tensor,
        action: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Estimate one value for each row, in tiles of many branches, each with random numbers of its own.

        Args:
            purpose: what they are for; as :attr:`spent` names it.
            seed: of the trajectories.
            states: saved states.
            obs: what the policy sees in them.
            time: t of each state.
            action: [R, ...] first action of every row, or None for the policy's.
            rows: [R] the state of each row; the r-th for row r if None.

        Returns:
            Mean [R] and standard error [R] over m continuations.
        """
        if purpose in self._made[1]:
            return self._made[1][purpose]
        name, _, rest = purpose.rstrip("]").partition("[")
        rule, _, j = rest.partition(":")
        key = (PURPOSES[name], ("", *NODE_RULES).index(rule), int(j or 0))
        rows = torch.arange(len(time), device=time.device) if rows is None else rows
        total = torch.empty(len(rows), self.m, dtype=torch.float64, device=time.device)
        size = max(1, (TILE if isinstance(states, Tensor) else self.env.part_size) // self.m)
        for tile, first in enumerate(range(0, len(rows), size)):
            own = rows[first : first + size]
            many = own.repeat_interleave(self.m)
            begin = None if action is None else action[first : first + size].repeat_interleave(self.m, 0)
            sequence = rng.branch(seed, *key, tile)
            made, steps = self._returns(take(states, many), obs[many], time[many], begin, sequence)
            total[first : first + size] = made.view(len(own), self.m)
            self.spent[purpose] += steps
        mean = total.mean(1)
        error = total.std(1) / self.m**0.5 if self.m > 1 else torch.full_like(mean, torch.nan)
        self._made[1][purpose] = (mean, error)
        return mean, error

    @torch.no_grad()
    def _returns(
        self, states: Saved, obs: Tensor, time: Tensor, action: Tensor | None, seed: np.random.SeedSequence
    ) -> tuple[Tensor, int]:
        """Continue n episodes from t < H to their end as one batch.

        Args:
            states: [n, ...].
            obs: [n, ...] what the policy sees there.
            time: [n] t.
            action: [n, ...] first actions, or None for the policy's.
            seed: of world and actions.

        Returns:
            Σ_u γ^{u−t} r_u [n], and the environment steps taken.

        Raises:
            InputError: for NaN and infinities from environment or policy.
        """
        world, actions = rng.children(seed, 2)
        generator, simulator = rng.torch_generator(actions, self.device), self.simulator
        simulator.restore(states, world)
        left = self.env.horizon - time
        total = torch.zeros(len(time), dtype=torch.float64, device=self.device)
        live, factor, taken, steps = torch.arange(len(time), device=self.device), 1.0, 0, 0
        while len(live):
            chosen = self._act(obs, generator) if action is None else action
            action = None
            obs, reward, end = simulator.step(chosen)
            total[live] += factor * reward
            spent = getattr(simulator, "spent", None)  # where one step is an episode of an inner world
            steps += len(live) if spent is None else int(spent.sum())
            taken, factor = taken + 1, factor * self.gamma
            going = ~end & (left[live] > taken)
            if not bool(going.all()):
                simulator.keep(going)
                obs, live = obs[going], live[going]
            elif getattr(simulator, "cut_short", None):
                simulator.keep(going)
        if not bool(torch.isfinite(total).all()):
            raise checks.InputError(
                f"Finite returns were expected of branches on {self.env.name}, but one gave NaN or infinity; look at θ and at "
                "the rewards there."
            )
        return total, steps

    def _act(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        try:
            distribution = self.policy(obs)
        except ValueError as error:  # torch's own argument checks: NaN logits or scales
            raise checks.InputError(
                f"A valid action distribution was expected from the policy on {self.env.name}, but in a branch torch said: "
                f"{str(error).splitlines()[0]}; look for NaN in θ or in the observations."
            ) from error
        return sample(distribution, generator)
