"""The summary table: one row per Φ and objective, and the sentences that a reader of it should know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

import varlab
from varlab.types import Moments, Reference

if TYPE_CHECKING:
    from varlab.oracles.exact import ExactRow
    from varlab.plans import Plan

#: Columns of every summary, in this order; other programs read them.
COLUMNS = (
    "env", "policy", "theta", "phi", "gamma", "discount_weighting", "horizon", "n", "n_reference", "reference_kind", "objective",
    "grad_norm", "variance", "variance_low", "variance_high", "variance_ratio", "variance_ratio_low", "variance_ratio_high",
    "bias_sq", "bias_sq_low", "bias_sq_high", "bias_p_value", "mse", "nsr", "kurtosis", "steps", "efficiency", "exact_variance",
    "seed", "values_source", "batch_size", "cut", "at_cut", "dtype", "device", "mse_low", "mse_high", "nsr_low", "nsr_high",
    "cosine", "cosine_low", "cosine_high", "grad_norm_low", "grad_norm_high", "exact_bias_sq", "exact_nsr", "flag",
    "reference_digest", "digest", "effective_directions", "reference_seed", "numerics", "target", "group_size", "groups",
    "shared_start", "behaviour", "unbiased",
)  # fmt: skip


def frame(
    plan: Plan,
    moments: Moments,
    references: Mapping[str, Reference],
    statistics: Mapping[str, Sequence[Mapping[str, object]]],
    exact: Sequence[ExactRow | None],
    value_sources: Sequence[str],
    value_steps: Sequence[int],
) -> pd.DataFrame:
    """Assemble the summary.

    Args:
        plan: the settings.
        moments: of the K choices.
        references: objective → reference.
        statistics: objective → one mapping for each choice, from :func:`varlab.analysis.statistics.summarise`.
        exact: [K] exact moments, None where no oracle applies.
        value_sources: [K] where each choice's values come from.
        value_steps: [K] environment steps that they cost.

    Returns:
        K rows for each objective, with the columns ``COLUMNS``.
    """
    options, cut = plan.options, plan.options["cut"]
    sampled = int(moments.steps.sum())
    common = {
        "env": options["env_label"],
        "policy": options["policy_label"],
        "theta": options["theta"],
        "gamma": options["gamma"],
        "discount_weighting": options["discount_weighting"],
        "horizon": plan.env.objective_horizon,
        "n": moments.n,
        "seed": options["seed"],
        "batch_size": options["batch_size"],
        "cut": plan.env.objective_horizon if cut is None else cut,
        "at_cut": options["at_cut"],
        "dtype": options["dtype"],
        "device": options["device"].type,
        "digest": plan.digest,
        "reference_seed": options["reference_seed"],
        "numerics": varlab.NUMERICS,
        "group_size": options["group_size"],
        "groups": options["groups"],
        "shared_start": options["shared_start"],
        "behaviour": options["behaviour_label"],
    }
    rows = []
    for objective, reference in references.items():
        for k, numbers in enumerate(statistics[objective]):
            steps = sampled + value_steps[k]
            variance = float(numbers["variance"])
            rows.append(
                {
                    **common,
                    **numbers,
                    **_exact_columns(exact[k], reference),
                    "phi": moments.names[k],
                    "target": plan.phi[k].target,
                    "objective": objective,
                    "n_reference": reference.n,
                    "reference_kind": reference.kind,
                    "reference_digest": reference.digest,
                    "values_source": value_sources[k],
                    "steps": steps,
                    "efficiency": 1.0 / (variance * steps / moments.n) if variance > 0 else np.inf,
                }
            )
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def _exact_columns(row: ExactRow | None, reference: Reference) -> dict[str, float]:
    """Exact variance, bias² and NSR of one Φ; the latter two only against an exact ∇J."""
    if row is None:
        return {}
    variance = float(row.variance_per_parameter.sum())
    if not reference.exact:
        return {"exact_variance": variance}
    square = float((reference.grad**2).sum())
    return {
        "exact_variance": variance,
        "exact_bias_sq": float(((row.mean - reference.grad) ** 2).sum()),
        "exact_nsr": variance / square if square > 0 else np.inf,
    }


def notes(plan: Plan, sentences: Sequence[str], scores_kind: str) -> tuple[str, ...]:
    """Return what a reader of the table should know.

    Args:
        plan: the settings.
        sentences: what the measurement itself had to say.
        scores_kind: factored or functional.

    Returns:
        Sentences.
    """
    out = list(sentences)
    labels = {e.label for e in plan.phi}
    mdp, gamma = plan.env.finite, plan.options["gamma"]
    same_weight = gamma == 1.0 or plan.options["discount_weighting"]
    if mdp is not None and mdp.reward_only_at_end and {"total_return", "reward_to_go"} <= labels and same_weight:
        out.append(
            f"reward_to_go equals total_return on {plan.env.name}: every outcome that pays also ends the episode, so no "
            "reward lies before an action and nothing is left out by summing only what comes after it."
        )
    if gamma < 1.0 and not plan.options["discount_weighting"]:
        out.append(
            "With gamma < 1 and discount_weighting=false the reward-to-go family shares one mean that is the gradient "
            "of no objective; total_return does not share it."
        )
    if scores_kind == "functional":
        out.append(
            "Scores come from torch.func: the policy is not made of linear layers, embeddings and Broadcast parameters alone."
        )
    return tuple(out)
