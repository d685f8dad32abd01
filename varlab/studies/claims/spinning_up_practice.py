"""Claims SU-10 to SU-15 and SU-17: other forms, critics, and what the code does that the formulas do not say."""

from __future__ import annotations

from functools import partial

from varlab.studies.claims import spinning_up_code, spinning_up_order  # noqa: F401
from varlab.studies.claims.catalogue import Control, claim
from varlab.studies.claims.spinning_up_code import CUT, EPISODES, GAMMA, LAMBDA
from varlab.studies.claims.spinning_up_exact import SAME_MEAN
from varlab.studies.claims.spinning_up_worlds import CODE, ROUNDING, TEXT, read

said = partial(claim, tag="T")
OTHER, BOX = f"{TEXT}, Other Forms of the Policy Gradient", f"{TEXT}, box on V_φ"
VPG, BUFFER = "Achiam (2018), Spinning Up in Deep RL, Vanilla Policy Gradient", f"{CODE}, VPGBuffer"
#: The code's estimators.
GAE, NORMALISED = f"gae(lam={LAMBDA})", f"normalised_advantage(lam={LAMBDA})"
MDPS, BATCHES = "ten random MDPs, exactly", "a world with three trajectories, all batches listed"

said(
    id="SU-10a", source=OTHER, study="su_identities", sentence="R, G_t, G_t − b, Q_t and A_t lead to the same expected gradient.",
    condition=MDPS, statistic="‖E g − ∇J‖/‖∇J‖, the largest of all six", effect=read("mean", "largest of all forms"),
    direction="below", bound=ROUNDING, needs=SAME_MEAN, control=Control("r_t in place of Q_t", read("mean", "reward alone")),
)  # fmt: skip
said(
    id="SU-10b", source=OTHER, study="su_identities", sentence="Their variances differ.", condition=MDPS,
    statistic="largest over smallest variance of the six, the least over the MDPs",
    effect=read("spread", "largest over smallest variance"), direction="above", bound=1.1, needs=SAME_MEAN,
    control=Control("so do those of GAE with λ = 1 and of G_t − V", read("spread", "gae(lam=1.0) and value_baseline")),
)  # fmt: skip
for letter, phi, name in (("a", "q_value", "Q_t"), ("b", "advantage", "A_t")):
    said(
        id=f"SU-11{letter}", source=OTHER, study="su_q", sentence=f"{name} is a valid choice: its gradient has the mean ∇J.",
        condition="900 random MDPs, exactly", statistic="‖E g − ∇J‖/‖∇J‖, the largest",
        effect=read("largest deviation of the mean of all", phi), direction="below", bound=ROUNDING, needs=(phi,),
        control=Control("so is r_t alone", read("largest deviation of the mean of all", "reward alone")),
    )  # fmt: skip
said(
    id="SU-11c", source=OTHER, tag="X", study="su_q", sentence="Q_t lowers the variance of every single term z_t Φ_t.",
    condition="900 random MDPs, exactly", statistic="Var(z_t Q_t)/Var(z_t G_t), the largest",
    effect=read("largest ratio of all", "a single term"), direction="below", bound=1.0, needs=("q_value", "reward_to_go"),
    control=Control("G_t lowers that of Q_t", read("largest ratio of all", "return over Q, a single term")),
)  # fmt: skip
said(
    id="SU-11d", source=OTHER, tag="X", study="su_q", sentence="Q_t lowers the variance of the whole gradient.",
    condition="in general: a fork with one θ for both steps, where Σ z_t G_t = 0 always",
    statistic="Var with Q_t less Var with G_t", effect=read("variance on the fork", "Q less return"), direction="below",
    bound=0.0,
    needs=("q_value", "reward_to_go"), published="0.25 [X]",
    control=Control(
        "G_t in the place of Q_t lowers that of every single term", read("largest ratio of all", "return over Q, a single term"),
        bound=1.0,
    ),
)  # fmt: skip
said(
    id="SU-12a", source=BOX, study="su_critics", sentence="Least squares on the returns makes V_φ approximate V^π.",
    condition=f"corridor, {EPISODES[-1]} episodes",
    statistic="1 − E(V_φ − V)²/Var V over visited states, the least of four critics",
    effect=read("least agreement", f"of {EPISODES[-1]} episodes"), direction="above", bound=0.9,
    control=Control(f"so do {EPISODES[0]} episodes", read("least agreement", f"of {EPISODES[0]} episodes")),
)  # fmt: skip
said(
    id="SU-12b", source=BOX, study="su_critics", sentence="The more V_φ explains, the lower the variance.",
    condition="corridor, 20 critics, exact variances",
    statistic="slope of log tr Cov on the explained variance of the critic on other data; n counts critics",
    effect=read("slope of log variance", "explained variance"), direction="below", bound=0.0, needs=("value_baseline",),
    control=Control("so it is with V_φ added", read("slope of log variance", "V_φ added")),
)  # fmt: skip
said(
    id="SU-12c", source=BOX, study="su_critics", sentence="However bad V_φ is, the mean stays ∇J.",
    condition="corridor, 20 critics, exactly",
    statistic="‖E g − ∇J‖/‖∇J‖, the largest", effect=read("largest bias", "value_baseline"), direction="below", bound=ROUNDING,
    needs=("value_baseline",), control=Control("so it does with δ_t", read("largest bias", "td_residual")),
)  # fmt: skip
for letters, objective, wrong, label, gamma in (
    ("ac", "J_1", "so is γ = 1", "γ^t left out", 1.0), ("bd", "J_γ", "so is the sum weighted by γ^t", "with γ^t", GAMMA)
):  # fmt: skip
    for letter, quantity, statistic in zip(
        letters, ("size", "direction"), ("‖E g − ∇J‖/‖∇J‖", "sine of the angle between E g and ∇J"), strict=True
    ):
        where = {"panel": objective, "world": "corridor"}
        said(
            id=f"SU-13{letter}", source=VPG, tag="T" if quantity == "size" else "X", study="su_discount",
            sentence=f"Discounted advantages without γ^t are biased for {objective} in {quantity}.",
            condition=f"corridor, T = 1000, γ = {GAMMA}, λ = {LAMBDA}, exact V", statistic=statistic,
            effect=read(f"bias in {quantity}", "γ^t left out", x=GAMMA, **where), direction="above", bound=0.01, needs=(GAE,),
            control=Control(wrong, read(f"bias in {quantity}", label, x=gamma, **where)),
        )  # fmt: skip
said(
    id="SU-14a", source=BUFFER, study="su_critics", tag="C",
    sentence="The value at the cut makes up for the steps that follow it.",
    condition=f"corridor cut at step {CUT} of 300, exact V", statistic="bias of the gradient of the first steps, over its length",
    effect=read("bias at the cut", "bootstrap, V^π"), direction="below", bound=ROUNDING, needs=("reward_to_go",),
    control=Control("so does the value of the state before", read("bias at the cut", "wrong_state")),
)  # fmt: skip
said(
    id="SU-14b", source=BUFFER, study="su_critics", tag="C",
    sentence="Without it, as if the episode had ended, the gradient is biased.",
    condition=f"corridor cut at step {CUT} of 300", statistic="bias of the gradient of the first steps, over its length",
    effect=read("bias at the cut", "terminal"), direction="above", bound=0.1, needs=("reward_to_go",),
    control=Control("so it is with the exact value", read("bias at the cut", "bootstrap, V^π")),
)  # fmt: skip
said(
    id="SU-14c", source=BUFFER, study="su_critics", tag="X", sentence="What is left shrinks as the critic improves.",
    condition=f"corridor cut at step {CUT} of 300, 20 critics",
    statistic="slope of log bias on log error of V_φ; n counts critics", effect=read("slope of log bias at the cut", "bootstrap"),
    direction="above", bound=0.25,
    control=Control("so it does without a value at the cut", read("slope of log bias at the cut", "terminal")),
)  # fmt: skip
said(
    id="SU-15a", source=BUFFER, study="su_units", tag="C",
    sentence="Shifting and scaling the advantages of a batch changes the direction of the expected gradient.",
    condition=f"{BATCHES}, N = 4", statistic="sine of the angle between E ĝ and ∇J", effect=read("sine", NORMALISED, x=4),
    direction="above", bound=0.01, needs=(NORMALISED,), control=Control("so does GAE as it is", read("sine", GAE, x=4)),
)  # fmt: skip
said(
    id="SU-15b", source=BUFFER, study="su_units", tag="X", sentence="That error falls as 1/N with the batch.", condition=BATCHES,
    statistic="slope of log sine on log N, N = 16 to 64, within 0.2 of −1", effect=read("rate", NORMALISED), direction="within",
    bound=-1.0, margin=0.2, needs=(NORMALISED,),
    control=Control("also where pairs are normalised", read("rate", "normalised in pairs")),
)  # fmt: skip
said(
    id="SU-17a", source=f"{CODE}, loss.mean()", study="su_units", tag="C",
    sentence="A loss averaged over steps has no multiple of ∇J as expected gradient where length and return are correlated.",
    condition=f"{BATCHES}, N = 4", statistic="sine of the angle between E ĝ and ∇J", effect=read("sine", "step_mean", x=4),
    direction="above", bound=0.01, needs=("step_mean",),
    control=Control("nor has the sum over steps", read("sine", "reward_to_go", x=4)),
)  # fmt: skip
said(
    id="SU-17b", source=f"{CODE}, loss.mean()", study="su_units", tag="X", sentence="That error falls as 1/N with the batch.",
    condition=BATCHES, statistic="slope of log sine on log N, N = 16 to 64, within 0.2 of −1", effect=read("rate", "step_mean"),
    direction="within", bound=-1.0, margin=0.2, needs=("step_mean",),
    control=Control("also for the mean over each trajectory's own steps", read("rate", "mean over its own steps")),
)  # fmt: skip
