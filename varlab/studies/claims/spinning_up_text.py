"""Claims SU-1 to SU-9: the simplest policy gradient, the lemma, past rewards, baselines."""

from __future__ import annotations

from functools import partial

from varlab.studies.claims import spinning_up_cartpole, spinning_up_exact, spinning_up_loss, spinning_up_past  # noqa: F401
from varlab.studies.claims.catalogue import Control, claim
from varlab.studies.claims.spinning_up_cartpole import THETA
from varlab.studies.claims.spinning_up_worlds import CODE, ROUNDING, TEXT, read

said = partial(claim, tag="T")
START, TWICE, FIVE = THETA
CARTPOLE = "CartPole-v1, T = 200, logistic policy of four parameters, {}"
EXACT = "ten random MDPs, exactly"

said(
    id="SU-1a", source=f"{TEXT}, Deriving the Simplest Policy Gradient", study="su_identities",
    sentence="The mean over trajectories of Σ_t z_t R(τ) is an estimate of ∇J.", condition=EXACT,
    statistic="‖E g − ∇J‖/‖∇J‖, the largest, against ∇J by differentiating Bellman's recursion",
    effect=read("mean", "total_return"), direction="below", bound=ROUNDING, needs=("total_return",),
    control=Control("mean of log-probabilities times R in place of the sum", read("mean", "mean log-probability")),
)  # fmt: skip
said(
    id="SU-1b", source=f"{CODE}, 1_simple_pg.py", study="su_simplest", tag="C",
    sentence="The simplest code's gradient estimates ∇J.",
    condition="CartPole, T = 200, perceptron of 32 tanh units at a random θ",
    statistic="‖E g − ∇J‖²/‖∇J‖² within 0.01 of 0, a tenth of ‖∇J‖; the reference from other trajectories",
    effect=read("squared bias", "total_return"), direction="within", bound=0.0, margin=0.01, needs=("total_return",),
    control=Control("mean of log-probabilities times R in place of the sum", read("squared bias", "mean log-probability")),
)  # fmt: skip
said(
    id="SU-2", source=f"{TEXT}, fact 5", study="su_identities",
    sentence="The score of a trajectory is the sum of its actions' scores: what belongs to the environment drops out.",
    statistic="largest |Σ_t z_t − ∇ log P(τ|θ)| over the largest entry, all trajectories of ten random MDPs",
    effect=read("score", "sum of action scores"), direction="below", bound=ROUNDING,
    control=Control("the sum without the last action", read("score", "without the last step")),
)  # fmt: skip
said(
    id="SU-3a", source=f"{TEXT}, box on the loss", study="su_surrogate",
    sentence="At the policy that made the data, the loss has the gradient −∇J.", condition=EXACT,
    statistic="‖−∇L − ∇J‖/‖∇J‖, the largest", effect=read("gradient", "data of the same policy"), direction="below",
    bound=ROUNDING,
    control=Control("data of the policy two steps before", read("gradient", "data of the policy two steps before")),
)  # fmt: skip
said(
    id="SU-3b", source=f"{TEXT}, box on the loss", study="su_surrogate",
    sentence="After a step the loss on the old data no longer has that gradient.", condition=EXACT,
    statistic="‖−∇L − ∇J‖/‖∇J‖ two steps later, the least", effect=read("gradient", "data of the policy two steps before"),
    direction="above", bound=0.1, control=Control("with data drawn anew", read("gradient", "data of the same policy")),
)  # fmt: skip
said(
    id="SU-3c", source=f"{TEXT}, box on the loss", study="su_surrogate",
    sentence="On a batch of data the loss can be sent to −∞.",
    condition="batches of 20 episodes with returns ≥ 0, as on CartPole",
    statistic="fall of L in the second half of the descent over that in the first, the largest: near 0 where L has a floor",
    effect=read("largest floor ratio", "20 episodes, returns above 0"), direction="above", bound=0.9,
    control=Control("the same with all data of the policy", read("largest floor ratio", "all data, returns above 0")),
)  # fmt: skip
said(
    id="SU-3d", source=f"{TEXT}, box on the loss", study="su_surrogate",
    sentence="On a batch of data the loss can be sent to −∞.", condition="batches of 20 episodes with returns below 0",
    statistic="fall of L in the second half of the descent over that in the first, the least: 1 or more where L has no floor",
    effect=read("least floor ratio", "20 episodes, returns below 0"), direction="above", bound=0.9,
    control=Control("with returns ≥ 0", read("least floor ratio", "20 episodes, returns above 0")),
)  # fmt: skip
said(
    id="SU-3e", source=f"{TEXT}, box on the loss", study="su_surrogate",
    sentence="Performance usually falls when the loss is sent to −∞.",
    condition="batches of 20 episodes with returns below 0, policies improved beforehand",
    statistic="share of random MDPs in which J is lower at the end",
    effect=read("share that falls", "20 episodes, returns below 0"),
    direction="above", bound=0.5,
    control=Control("with all data of the policy", read("share that falls", "all data, returns below 0")),
)  # fmt: skip
said(
    id="SU-3f", source=f"{TEXT}, box on the loss", study="su_surrogate",
    sentence="Performance usually falls when the loss is minimised on a batch.",
    condition="batches of 20 episodes with returns ≥ 0, policies improved beforehand",
    statistic="share of random MDPs in which J is lower at the minimum",
    effect=read("share that falls", "20 episodes, returns above 0"),
    direction="above", bound=0.5,
    control=Control("with all data of the policy", read("share that falls", "all data, returns above 0")),
)  # fmt: skip
for letter, data, condition in (
    ("g", "20 episodes", "batches of 20 episodes with returns ≥ 0, at the minimum"),
    ("h", "all data", "all data of a policy, returns ≥ 0, at the minimum: the step of reward-weighted regression"),
):  # fmt: skip
    said(
        id=f"SU-3{letter}", source=f"{TEXT}, box on the loss", study="su_surrogate",
        sentence="Minimising the loss gives no guarantee of improvement: J may fall.", condition=condition,
        statistic="least change of J over random MDPs", effect=read("least change of J", f"{data}, returns above 0"),
        direction="below", bound=0.0,
        control=Control("a step of 0.1 along ∇J may lower J", read("least change of J", "a step along ∇J, returns above 0")),
    )  # fmt: skip
said(
    id="SU-4", source=f"{TEXT}, Expected Grad-Log-Prob Lemma", study="su_identities",
    sentence="E[z_t | s_t] = 0 for any policy.", condition="table, logistic, linear, perceptron, Gaussian perceptron",
    statistic="‖E_a z‖/√E_a‖z‖², the largest of the states of 100 episodes",
    effect=read("expected score", "largest of all policies"), direction="below", bound=ROUNDING,
    control=Control(
        "actions at random with ε = 0.2, scores of the policy", read("expected score", "acts at random with ε = 0.2"),
    ),
)  # fmt: skip
said(
    id="SU-5a", source=f"{TEXT}, extra material on past rewards", study="su_map",
    sentence="E[z_t r_u] = 0 for every u < t.", condition="a random MDP, exactly",
    statistic="largest ‖E[z_t r_u]‖ with u < t over the largest of all", effect=read("past over largest", "random MDP, exact"),
    direction="below", bound=ROUNDING, control=Control("u ≤ t counted as past", read("past over largest", "shifted by one")),
)  # fmt: skip
said(
    id="SU-5b", source=f"{TEXT}, extra material on past rewards", study="su_map",
    sentence="E[z_t r_u] is in general not 0 for u ≥ t.", condition="a random MDP, exactly",
    statistic="share of entries u ≥ t above 10⁻⁶ of the largest", effect=read("share of entries that differ from 0", "u ≥ t"),
    direction="above", bound=0.5, control=Control("entries u < t", read("share of entries that differ from 0", "u < t")),
)  # fmt: skip
said(
    id="SU-5c", source=f"{TEXT}, extra material on past rewards", study="su_map",
    sentence="E[z_t r_u] = 0 for every u < t.", condition="CliffWalking, sampled",
    statistic="Σ‖E[z_t r_u]‖² over u < t, over that of u ≥ t, within 0.02 of 0",
    effect=read("square over that of u ≥ t", "u < t"),
    direction="within", bound=0.0, margin=0.02,
    control=Control("u ≤ t counted as past", read("square over that of u ≥ t", "shifted by one")),
)  # fmt: skip
said(
    id="SU-6a", source=f"{TEXT}, Don't Let the Past Distract You", study="su_identities",
    sentence="Reward-to-go has the same mean as the total return.", condition=EXACT,
    statistic="‖E g_R − E g_G‖/‖E g_G‖, the largest", effect=read("past", "total_return − reward_to_go"), direction="below",
    bound=ROUNDING, needs=("total_return", "reward_to_go"),
    control=Control("rewards from the next step on", read("past", "total_return − from the next step")),
)  # fmt: skip
said(
    id="SU-6b", source=f"{TEXT}, Don't Let the Past Distract You", study="su_cartpole",
    sentence="Reward-to-go has the same mean as the total return.", condition=CARTPOLE.format(START),
    statistic="‖E g_R − E g_G‖²/‖∇J‖² within 0.01 of 0, on the same trajectories",
    effect=read("squared mean", "past", panel=START),
    direction="within", bound=0.0, margin=0.01, needs=("total_return", "reward_to_go"),
    control=Control(
        "mean of log-probabilities times R has the mean ∇J", read("squared bias", "mean log-probability", panel=START),
    ),
)  # fmt: skip
said(
    id="SU-7a", source=f"{TEXT}, box on past rewards", study="su_counter",
    sentence="Leaving out past rewards lowers the variance.",
    condition="in general: r_0 = +1 and r_1 = −1 whatever the action, p = 1/2",
    statistic="Var of one derivative with reward-to-go less that with the total return",
    effect=read("difference", "reward-to-go less total return, p = 1/2"), direction="below", bound=0.0, published="0.25 [X]",
    needs=("total_return", "reward_to_go"),
    control=Control(
        "V lowers the variance on two arms at p = 0.9", read("ratio", "V to no baseline, p = 0.9"), bound=1.0,
    ),
)  # fmt: skip
for letter, where in zip("bcd", THETA, strict=True):
    said(
        id=f"SU-7{letter}", source=f"{TEXT}, box on past rewards", study="su_cartpole",
        sentence="Leaving out past rewards lowers the variance and the number of trajectories needed.",
        condition=CARTPOLE.format(where), statistic="Var(G)/Var(R); 1 less it is the share of trajectories saved",
        effect=read("part", "Var(G)/Var(R)", log=True, panel=where), direction="below", bound=1.0,
        needs=("total_return", "reward_to_go"),
        control=Control("counting past rewards twice", read("ratio to total return", "past twice", log=True, panel=where)),
    )  # fmt: skip
said(
    id="SU-7e", source=f"{TEXT}, box on past rewards", study="su_cartpole",
    sentence="Past rewards just add noise to the estimate: their variance is what they cost.", condition=CARTPOLE.format(START),
    statistic="2 Cov(G, D)/Var(D) within 0.1 of 0, D the past",
    effect=read("part", "2 Cov(G, D)/Var(D)", panel=START), direction="within", bound=0.0, margin=0.1,
    control=Control(
        "Var(D) is all that Var(R) has", read("part", "Var(D)/Var(R)", log=True, panel=START), "within", 1.0, 0.1,
    ),
)  # fmt: skip
said(
    id="SU-8a", source=f"{TEXT}, Baselines in Policy Gradients", study="su_identities",
    sentence="Any b(s) leaves the mean unchanged.", condition="b = 10, V, random, 100 V on ten random MDPs, exactly",
    statistic="‖E g − ∇J‖/‖∇J‖, the largest", effect=read("mean", "largest of all b(s)"), direction="below", bound=ROUNDING,
    control=Control("b(s, a) = Q/10, which sees the action", read("mean", "sees the action")),
)  # fmt: skip
for letter, phi in (("b", "constant_baseline"), ("c", "value_baseline")):
    said(
        id=f"SU-8{letter}", source=f"{TEXT}, Baselines in Policy Gradients", study="su_cartpole",
        sentence=f"A fitted {'constant' if letter == 'b' else 'V_φ'} as baseline leaves the mean unchanged.",
        condition=f"{CARTPOLE.format(START)}, fitted on other trajectories", statistic="‖E g − ∇J‖²/‖∇J‖² within 0.01 of 0",
        effect=read("squared bias", phi, panel=START), direction="within", bound=0.0, margin=0.01, needs=(phi,),
        control=Control("past rewards in place of a baseline of the state", read("squared bias", "past", panel=START)),
    )  # fmt: skip
said(
    id="SU-9a", source=f"{TEXT}, Baselines in Policy Gradients", study="su_counter",
    sentence="The baseline V reduces the variance.", condition="in general: two arms, reward 1 for one of them, p = 0.9",
    statistic="Var with b = V over Var with b = 0", effect=read("ratio", "V to no baseline, p = 0.9"), direction="below",
    bound=1.0,
    needs=("value_baseline",), published="64 [X]",
    control=Control("so does b = 1", read("ratio", "b = 1 to no baseline, p = 0.9")),
)  # fmt: skip
said(
    id="SU-9b", source=f"{TEXT}, Baselines in Policy Gradients", study="su_counter",
    sentence="The baseline V reduces the variance.", condition="two arms, p < 2/3",
    statistic="Var with b = V over Var with b = 0, the largest over p",
    effect=read("ratio", "V to no baseline, largest for p < 2/3"), direction="below", bound=1.0, needs=("value_baseline",),
    control=Control("for p > 2/3", read("ratio", "V to no baseline, least for p > 2/3")),
)  # fmt: skip
for letter, where in zip("cde", THETA, strict=True):
    said(
        id=f"SU-9{letter}", source=f"{TEXT}, Baselines in Policy Gradients", study="su_cartpole",
        sentence="The baseline V, fitted on other trajectories, reduces the variance.", condition=CARTPOLE.format(where),
        statistic="Var(G − V_φ)/Var(G)", effect=read("ratio to reward-to-go", "value_baseline", log=True, panel=where),
        direction="below", bound=1.0, needs=("value_baseline",),
        control=Control("so does adding 20", read("ratio to reward-to-go", "20 added", log=True, panel=where)),
    )  # fmt: skip
said(
    id="SU-9f", source=f"{TEXT}, Baselines in Policy Gradients", study="su_cartpole",
    sentence="The baseline V reduces the variance more than a constant does.", condition=CARTPOLE.format(FIVE),
    statistic="Var(G − V_φ)/Var(G − b), b the mean of G_t",
    effect=read("ratio to constant", "value_baseline", log=True, panel=FIVE),
    direction="below", bound=1.0, needs=("value_baseline", "constant_baseline"),
    control=Control("so does adding 20", read("ratio to reward-to-go", "20 added", log=True, panel=FIVE)),
)  # fmt: skip
