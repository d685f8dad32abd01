"""How far the V of an agent is from the returns and from the targets it learns by, on steps it has not seen: IL-4."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor

from varlab.analysis import estimates
from varlab.analysis import style as styles
from varlab.analysis.replicates import Replicated
from varlab.estimators.base import Batch
from varlab.studies.agents import Agent, agents
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.cells import cell, row
from varlab.studies.claims.gradient_quality import COURSES, FIT, FITTED, ILYAS, PLACES
from varlab.studies.claims.verdicts import Effect
from varlab.types import Trajectories, Values
from varlab.values.targets import lambda_returns

#: Held-out episodes at the default budget.
EPISODES = 1000
BLOCKS = 50
RETURNS, TARGET, TRUTH = "returns", "own GAE target", "V* of many episodes"


def relative_error(traj: Trajectories, guess: Tensor, target: Tensor) -> Replicated:
    """Return E Σ_t |V − y_t| / E Σ_t |y_t|: means over steps of the visits, blocks of whole episodes.

    A ratio of means, for a mean of ratios is decided by the targets next to 0.

    Args:
        traj: N episodes.
        guess: [M] V.
        target: [M] y.

    Returns:
        The ratio.
    """

    def summed(x: Tensor) -> Replicated:
        sums = torch.zeros(len(traj), dtype=torch.float64).index_add(0, traj.episode, x.double().abs())
        return Replicated.mean(sums.numpy(), BLOCKS)

    return summed(guess - target) / summed(target)


def targets(agent: Agent, traj: Trajectories, v: Tensor, v_last: Tensor) -> dict[str, Tensor]:
    """Return the returns G_t and V + A^GAE, the λ-return of the agent's own V, [M] each."""
    course = agent.course
    return {
        RETURNS: Batch(traj, Values(), course.gamma).reward_to_go,
        TARGET: lambda_returns(traj, v, v_last, course.gamma, course.lam),
    }


def at_agent(agent: Agent, world: str, budget: Budget) -> list[dict]:
    """Return the errors of an agent's V on held-out episodes, and those of V ≡ 0 and, late, of V*."""
    traj = agent.rollout(budget.n(EPISODES, least=200), "rollout")
    found = agent.job("value_baseline").source(traj, frozenset({"v"}))
    aims, guesses = targets(agent, traj, found.v, found.v_last), {"learned V": found.v}
    guesses["V ≡ 0"] = torch.zeros_like(found.v)
    if agent.label == "late":
        true = agent.fitted(budget.n(FITTED[world], least=100), FIT)(traj, frozenset({"v"})).v
        aims, guesses = {**aims, TRUTH: true}, {**guesses, "V*": true}
    key = {"world": world, "stage": agent.label}
    errors = {(g, a): relative_error(traj, v, y) for g, v in guesses.items() for a, y in aims.items() if (g, a) != ("V*", TRUTH)}
    rows = [
        row(a, as_effect(e), panel=world if g == "learned V" else "", what=g, **key)
        for (g, a), e in errors.items()
    ]
    learned = {a: errors["learned V", a] for a in aims}
    rows.append(row("returns over target", as_effect(learned[RETURNS] / learned[TARGET]), panel="", what="ratio", **key))
    rows.append(row("target over returns", as_effect(learned[TARGET] / learned[RETURNS]), panel="", what="ratio", **key))
    return rows


def as_effect(found: Replicated) -> Effect:
    """Return a positive ratio as an effect on the logarithm."""
    return Effect(found.value, *found.interval(log=True), found.n, log=found.value > 0)


@study(
    "value_errors",
    "Relative error E|V − y|/E|y| of the V that an agent has learnt, on held-out episodes of its policy: y the returns, "
    "V + GAE, and V* fitted on many episodes (last stage). Worlds and agents are those of the figure of cosines.",
    draw=lambda rows, style=None: draw(rows, style),
    version=2,
)
def value_errors(budget: Budget) -> pd.DataFrame:
    """Return relative errors by world and stage."""
    made = [(w, a) for w, course in COURSES.items() for a in agents(course, budget.seed).values()]
    return pd.DataFrame([r for world, agent in made for r in at_agent(agent, world, budget)])


def draw(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the errors of the learned V, one panel for each world."""
    shown = rows[rows["panel"] != ""]
    shown = shown.assign(panel=shown["world"] + "-v1", label=shown["stage"] + ": " + shown["label"])
    return estimates.draw(shown, style, xlabel="relative error on held-out episodes")


def number(what: str, target: str, world: str) -> Callable[[pd.DataFrame], Effect]:
    """Return rows → an error, or a ratio of two, after training."""
    return lambda rows: cell(rows, what=what, label=target, world=world, stage="late")


def said(**fields: object) -> None:
    """Enter a claim of the paper that this study decides."""
    claim(**{"source": f"{ILYAS}, Fig. 3", "tag": "M", "study": "value_errors", "needs": ("gae(lam=0.95)",), **fields})


for _letters, _world in zip(("aceg", "bdfh"), COURSES, strict=True):
    _held = f"{PLACES[_world]}, after training, held-out episodes, V fitted to the returns of each batch"
    for _letter, _target, _words in (
        (_letters[0], RETURNS, "the returns"), (_letters[1], TRUTH, "the true value function, fitted on many episodes"),
    ):  # fmt: skip
        said(
            id=f"IL-4{_letter}", sentence=f"The learned V is off by about 50 % of {_words}.", condition=_held, direction="within",
            bound=0.5, margin=0.2, statistic="E|V − y|/E|y|, within 0.2 of 0.5", effect=number("learned V", _target, _world),
            published="about 0.5, Walker2d [M]", control=Control("so is V ≡ 0", number("V ≡ 0", _target, _world)),
        )  # fmt: skip
    said(
        id=f"IL-4{_letters[2]}", sentence="It is close to its own GAE target.", condition=_held, direction="below",
        bound=0.2, statistic="E|V − y|/E|y| with y = V + GAE(0.95)", effect=number("learned V", TARGET, _world),
        control=Control("so is V ≡ 0", number("V ≡ 0", TARGET, _world)),
    )  # fmt: skip
    said(
        id=f"IL-4{_letters[3]}", sentence="Its error to the returns is a multiple of that to its own target.", condition=_held,
        direction="above", bound=2.0, statistic="ratio of both relative errors",
        effect=number("ratio", "returns over target", _world),
        control=Control("that to its own target is a multiple of it", number("ratio", "target over returns", _world)),
    )  # fmt: skip
