"""How baselines of least variance are fitted: against plain loops over steps, and how fast the fits approach the optimum."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from contract import WORLDS

import varlab
from varlab import envs, policies, scores
from varlab.checks import InputError
from varlab.estimators import Batch, FitBatch, make, score_products, step_baselines, weight
from varlab.estimators.optimal import BASES
from varlab.estimators.step_baselines import CLASSES, RIDGE, Rows, StepBaseline
from varlab.oracles.exact import world_of
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.scores.functional import FunctionalScores
from varlab.types import Values

OF = (*CLASSES, "parameter")


def fit_batch(env, policy, n, seed=0, gamma=0.9, weighting=True, form=scores.FactoredScores):
    traj = rollout(env, policy, n, Streams(seed).sequence("critic"))
    return FitBatch(traj, Values(), gamma, env=env, policy=policy, scores=form(policy), discount_weighting=weighting)


def score(policy, obs, action):
    """∇ log π of one step by autograd, [P]."""
    log_pi = policies.log_prob(policy(obs.unsqueeze(0)), action.unsqueeze(0))[0]
    return torch.cat([g.flatten() for g in torch.autograd.grad(log_pi, list(policy.parameters()))]).double()


def psi(batch, row):
    """(o, o², t/H, (t/H)², (t/H)³, 1) of one step, or one-hot without squares."""
    env, o, t = batch.env, batch.traj.obs[row], float(batch.traj.time[row]) / batch.env.horizon
    if env.discrete_observations:
        seen = [float(int(o) == s) for s in range(env.num_features)]
    else:
        seen = [*o.double().flatten().tolist(), *(o.double().flatten() ** 2).tolist()]
    return torch.tensor([*seen, t, t**2, t**3, 1.0], dtype=torch.float64)


class Loop:
    """Σ over steps and trajectories, one at a time: a_r = w² ‖z‖², c_r = w ⟨z, g_0⟩, and own_r = w² ‖z‖² G."""

    def __init__(self, batch, base="reward_to_go"):
        traj, self.batch = batch.traj, batch
        w = [batch.gamma**t if batch.discount_weighting and base == "reward_to_go" else 1.0 for t in traj.time.tolist()]
        self.a, self.c, self.own = [], [], []
        self.square, self.product = 0.0, 0.0
        for i in range(len(traj)):
            rows = range(int(traj.offsets[i]), int(traj.offsets[i + 1]))
            z = [score(batch.policy, traj.obs[r], traj.action[r]) for r in rows]
            to_go = [sum(batch.gamma ** (u - r) * float(traj.reward[u]) for u in rows if u >= r) for r in rows]
            phi = to_go if base == "reward_to_go" else [to_go[0]] * len(z)
            g0 = sum(w[r] * f * x for r, f, x in zip(rows, phi, z, strict=True))
            s = sum(w[r] * x for r, x in zip(rows, z, strict=True))
            self.square, self.product = self.square + s**2, self.product + s * g0
            for r, x, g in zip(rows, z, to_go, strict=True):
                self.a.append(w[r] ** 2 * float(x @ x))
                self.c.append(w[r] * float(x @ g0))
                self.own.append(w[r] ** 2 * float(x @ x) * g)

    def b(self, of, c=None):
        """b of every step [M], or of every parameter [P]."""
        traj, c = self.batch.traj, self.c if c is None else c
        if of == "parameter":
            return torch.where(self.square > 0, self.product / self.square, 0.0)
        if of == "features":
            x = [psi(self.batch, r) for r in range(traj.steps)]
            x, root = torch.stack(x), torch.tensor(self.a, dtype=torch.float64).sqrt()
            # By orthogonal factors of the rows √a_r ψ_r, not normal equations; columns of one length, the ridge as rows.
            rows = root[:, None] * x
            rows = rows / rows.norm(dim=0).clamp(min=1e-300)
            k = rows.shape[1]
            more = torch.cat([rows, RIDGE**0.5 * torch.eye(k, dtype=torch.float64)])
            right = torch.cat([torch.tensor(c, dtype=torch.float64) / root, torch.zeros(k, dtype=torch.float64)])
            return rows @ torch.from_numpy(np.linalg.lstsq(more.numpy(), right.numpy(), rcond=1e-15)[0]) / root
        cells = {"constant": lambda r: 0, "time": lambda r: int(traj.time[r])}
        cell = cells.get(of, lambda r: (int(traj.time[r]), int(traj.state[r])))
        sums = {}
        for r in range(traj.steps):
            top, bottom = sums.get(cell(r), (0.0, 0.0))
            sums[cell(r)] = top + c[r], bottom + self.a[r]
        return torch.tensor([sums[cell(r)][0] / sums[cell(r)][1] for r in range(traj.steps)], dtype=torch.float64)


def frozenlake(kind, dtype=torch.float64):
    env = envs.make("FrozenLake-v1", horizon=12)
    return env, policies.prepare(policies.make(kind, env, theta_seed=1), dtype, torch.device("cpu"))


def pendulum(dtype=torch.float64):
    env = envs.make("Pendulum-v1", horizon=6)
    return env, policies.prepare(policies.make("mlp", env, theta_seed=1, hidden=(5,)), dtype, torch.device("cpu"))


CASES = {"table": lambda: frozenlake("softmax_table"), "linear": lambda: frozenlake("linear"), "gaussian": pendulum}


@pytest.mark.parametrize("weighting", (True, False))
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("case", CASES)
def test_fits_are_those_of_plain_loops(case, base, weighting):
    env, policy = CASES[case]()
    batch = fit_batch(env, policy, 30, weighting=weighting)
    loop = Loop(batch, base)
    for of in OF:
        if of == "state" and env.finite is None:
            continue
        e = make("optimal_baseline", of=of, base=base).fit(batch)
        found = e.by_parameter if of == "parameter" else e.fitted.at(batch.traj)
        torch.testing.assert_close(found, loop.b(of), rtol=1e-10, atol=1e-5 if of == "features" else 1e-9)
        if of != "parameter":
            plain = weight(make(base), batch, False)
            torch.testing.assert_close(e.phi(batch), plain - found, rtol=1e-13, atol=1e-13)
        else:
            assert torch.equal(e.coefficients, -found)
            w = batch.discount if weighting and e.weighted else torch.ones_like(batch.discount)
            assert torch.equal(e.companion(batch), w)
    for of in CLASSES[:3]:
        if base == "reward_to_go" and (of != "state" or env.finite is not None):
            found = make("score_weighted_baseline", of=of).fit(batch).fitted.at(batch.traj)
            torch.testing.assert_close(found, loop.b(of, loop.own), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", ("linear", "gaussian"))
def test_neither_chunks_nor_the_score_map_nor_its_precision_matter(case, monkeypatch):
    env, policy = CASES[case]()
    batch = fit_batch(env, policy, 40)
    members = [make("optimal_baseline", of=of) for of in OF if of != "state" or env.finite is not None]
    members.append(make("score_weighted_baseline"))

    def numbers(batch):
        made = [e.fit(batch) for e in members]
        return torch.cat([e.by_parameter if e.fitted is None else e.fitted.at(batch.traj).flatten() for e in made])

    plain = numbers(batch)
    functional = numbers(replace(batch, scores=FunctionalScores(policy)))
    torch.testing.assert_close(functional, plain, rtol=1e-6, atol=1e-5)
    single = policies.prepare(policy, torch.float32, torch.device("cpu"))
    torch.testing.assert_close(
        numbers(replace(batch, policy=single, scores=scores.FactoredScores(single))), plain, rtol=2e-3, atol=2e-3
    )
    monkeypatch.setattr(score_products, "ENTRIES", 150)
    monkeypatch.setattr(score_products, "BYTES", 1)
    monkeypatch.setattr(score_products, "PIECE", 5)
    monkeypatch.setattr(step_baselines, "NUMBERS", 60)
    torch.testing.assert_close(numbers(batch), plain, rtol=1e-6, atol=1e-5)


def test_times_and_states_without_data_take_the_constant():
    env, policy = frozenlake("softmax_table")
    batch = fit_batch(env, policy, 3)
    constant = make("optimal_baseline").fit(batch).fitted.value
    for of in ("time", "state"):
        b = make("optimal_baseline", of=of).fit(batch).fitted.value
        reached = torch.zeros(b.numel(), dtype=torch.bool)
        cell = batch.traj.time if of == "time" else batch.traj.time * env.finite.num_states + batch.traj.state
        reached[cell] = True
        assert bool((~reached).any()) and bool((b.flatten()[~reached] == constant).all())
    b = make("optimal_baseline", of="parameter").fit(batch).by_parameter.reshape(16, 4)
    assert bool((b[15] == 0).all()), "nobody acts in the goal"


def test_the_ridge_is_too_small_to_matter_and_copes_with_columns_that_repeat():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(50, 3, generator=draw, dtype=torch.float64) * torch.tensor([1e-4, 1.0, 1e5])
    y = torch.randn(50, generator=draw, dtype=torch.float64)
    best = torch.linalg.lstsq(x, y).solution
    torch.testing.assert_close(step_baselines.solve_normal_equations(x.T @ x, x.T @ y), best, rtol=1e-9, atol=0)
    double = torch.cat([x, x[:, :1], torch.zeros(50, 1, dtype=torch.float64)], 1)
    beta = step_baselines.solve_normal_equations(double.T @ double, double.T @ y)
    torch.testing.assert_close(double @ beta, x @ best, rtol=1e-6, atol=1e-8)
    assert float(beta[-1]) == 0.0 and RIDGE <= 1e-10


def test_table_and_steps_agree():
    env, policy = frozenlake("softmax_table")
    batch = fit_batch(env, policy, 20)
    for of in CLASSES:
        b = make("optimal_baseline", of=of).fit(batch).fitted
        table = torch.from_numpy(b.table(env.finite))
        torch.testing.assert_close(b.at(batch.traj), table[batch.traj.time, batch.traj.state], rtol=1e-12, atol=1e-12)


def test_what_cannot_be_fitted_is_one_sentence():
    env, policy = pendulum()
    batch = fit_batch(env, policy, 3)
    for name in ("optimal_baseline", "score_weighted_baseline"):
        with pytest.raises(InputError, match=f"Finitely many states were expected for {name}.*Pendulum.*of=features"):
            make(name, of="state").fit(batch)
        with pytest.raises(InputError, match=f"FitBatch with the policy's scores was expected to fit {name}"):
            make(name).fit(Batch(batch.traj, Values(), 1.0))


# ---- how fast fits approach the optimum


def normal_noise(world, of, base, gamma):
    """lim n · (E excess) = E[uᵀ A⁻¹ u], u the residual of the normal equations in one trajectory, by enumeration."""
    traj, p = world.paths.traj, world.probability
    batch = Batch(traj, Values(), gamma)
    z, w = world.paths.scores(world.logits), gamma ** traj.time.double() if base == "reward_to_go" else torch.ones(traj.steps)
    g0 = world.paths.gradients(world.logits, weight(make(base), batch, True))
    a, c = w**2 * z.square().sum(1), w * (z * g0[traj.episode]).sum(1)
    if of == "parameter":
        s = world.paths.gradients(world.logits, w.double())
        square, product = p @ s**2, p @ (s * g0)
        return float(((p @ (s * g0 - product / square * s**2) ** 2) / square).sum())
    rows = Rows.of(traj, world.env)
    if of == "features":
        x = torch.cat([part for _, part in rows.chunks()])
    else:
        cell = {"constant": 0 * traj.time, "time": traj.time, "state": traj.time * rows.num_states + traj.state}[of]
        x = torch.nn.functional.one_hot(cell).double()
    share = p[traj.episode]
    normal, right = x.T @ ((share * a)[:, None] * x), x.T @ (share * c)
    inverse = torch.linalg.pinv(normal, rtol=1e-11, hermitian=True)
    u = torch.zeros(len(traj), x.shape[1], dtype=torch.float64)
    u.index_add_(0, traj.episode, x * (c - a * (x @ (inverse @ right)))[:, None])
    return float(p @ torch.einsum("ni,ij,nj->n", u, inverse, u))


SIZES, SEEDS = (200, 800, 3200, 12800), 16
#: Fixed before the first run. An excess is about χ² of as many degrees of freedom as b has numbers, so that over 16 seeds the
#: slope's standard error is at most 0.12, and that of the mean of n · excess over sizes and seeds at most 0.18 of it.
SLOPE, LEVEL = 0.3, 0.45


@pytest.fixture(scope="module", params=WORLDS)
def fits(request):
    """World → {(of, base): excess variance [sizes, seeds]} of fits on n trajectories."""
    world = WORLDS[request.param]()
    gamma = 0.9
    inner = world_of(world.env, world.policy, None, gamma, None, "terminal")
    moments = {base: inner.score_moments(base) for base in BASES}
    best = {}
    for base, m in moments.items():
        a, c = (torch.from_numpy(x.ravel()) for x in (m.norm, m.product))
        grid = Rows.grid(world.mdp, world.horizon)
        best |= {(of, base): StepBaseline.fit(of, a, c, grid).table(world.mdp) for of in CLASSES}
    out = {(of, base): np.empty((len(SIZES), SEEDS)) for of in OF for base in BASES}
    for i, n in enumerate(SIZES):
        for seed in range(SEEDS):
            batch = fit_batch(world.env, world.policy, n, seed=100 * i + seed, gamma=gamma)
            for (of, base), excess in out.items():
                e, m = make("optimal_baseline", of=of, base=base).fit(batch), moments[base]
                if of == "parameter":
                    off = (e.by_parameter.numpy() - m.best_by_parameter) ** 2
                    excess[i, seed] = (m.norm_by_parameter * off).sum()
                else:
                    excess[i, seed] = (m.norm * (e.fitted.table(world.mdp) - best[of, base]) ** 2).sum()
    return world, gamma, out


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("of", OF)
def test_the_excess_variance_of_a_fit_falls_as_one_over_n(fits, of, base):
    world, gamma, found = fits
    mean = found[of, base].mean(1)
    slope = np.polyfit(np.log(SIZES), np.log(mean), 1)[0]
    assert abs(slope + 1) < SLOPE
    scaled = float((np.array(SIZES)[1:] * mean[1:]).mean())
    assert scaled == pytest.approx(normal_noise(world, of, base, gamma), rel=LEVEL)


def test_the_excess_is_that_of_the_exact_variance(fits):
    world, gamma, _ = fits
    batch = fit_batch(world.env, world.policy, 100, gamma=gamma)
    inner = world_of(world.env, world.policy, None, gamma, None, "terminal")
    for base in BASES:
        m, e = inner.score_moments(base), make("optimal_baseline", of="parameter", base=base)
        b = e.fit(batch)
        own, least = (varlab.exact(world.env, world.policy, x, gamma=gamma).variance[0] for x in (b, e))
        excess = float((m.norm_by_parameter * (b.by_parameter.numpy() - m.best_by_parameter) ** 2).sum())
        assert own - least == pytest.approx(excess, rel=1e-9)


# ---- in a measurement


def test_a_measurement_fits_on_the_critic_stream_and_knows_the_exact_variance():
    env, policy = frozenlake("softmax_table")
    phi = [make("optimal_baseline", of=of, base=base) for of in OF for base in BASES]
    phi += [make("score_weighted_baseline", of=of) for of in CLASSES[:3]]
    result = varlab.measure(env, policy, phi, n=4000, gamma=0.9, seed=3, dtype="float64", pilot=100)
    rows = result.summary
    assert rows["values_source"].eq("critic stream").all()
    error = rows.variance * np.sqrt((rows["kurtosis"] - 1) / 4000)
    assert ((rows.variance - rows.exact_variance).abs() / error).max() < 4
    assert (rows.exact_bias_sq < 1e-20).all()
    population = varlab.exact(env, policy, [e for e in phi if e.name == "optimal_baseline"], gamma=0.9).variance
    fitted = rows.exact_variance.to_numpy()[: len(population)]
    assert (fitted > population).all() and (fitted[0] < 1.05 * population[0])


def test_continuous_worlds_take_all_but_states():
    env, policy = pendulum(torch.float32)
    phi = [make("optimal_baseline", of=of) for of in ("constant", "time", "features", "parameter")]
    rows = varlab.measure(env, policy, ["reward_to_go", *phi], n=200, gamma=0.9, pilot=50, n_reference=400).summary
    assert isinstance(env.observation_space, gymnasium.spaces.Box)
    assert (rows.variance.to_numpy()[1:] < rows.variance.to_numpy()[0]).all()
