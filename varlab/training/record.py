"""What a training run leaves behind: a row for every epoch, θ at a few of them, φ, and what it cost."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from torch import Tensor, nn

from varlab import checks

#: Of every row. Row e is of the batch that θ_e drew, before the step to θ_{e+1}:
#:   setting: digest of all settings but seed and θ_0; digest: of all of them.
#:   steps: environment steps spent so far, this batch included; episodes: of this batch.
#:   mean_return, standard_error: of Σ_t r_t (undiscounted), over the batch's episodes that sampling did not cut short.
#:   gradient_norm: ‖ĝ‖ of the mean over the batch's episodes.
#:   critic_loss: mean of (V(s_t) − G_t)², with the values that this epoch's Φ read (of Q where Φ reads no V);
#:   explained_variance: 1 − Var(G − V)/Var(G) of the same. Both are of data that a critic was not yet fitted on.
COLUMNS = (
    "env", "policy", "phi", "seed", "epoch", "steps", "episodes", "mean_return", "standard_error", "mean_length", "gradient_norm",
    "critic_loss", "explained_variance", "setting", "digest",
)  # fmt: skip


@dataclass(frozen=True)
class Training:
    """A finished training run.

    Attributes:
        curve: one row per epoch, with the columns of :data:`COLUMNS`.
        checkpoints: ``init`` (θ_0), ``mid`` (after half of the epochs), ``late`` (after the last), and the listed epochs as
            ``"7"`` → the policy's state.
        policy: the policy at ``late``.
        critic: φ, what ``CriticUpdates.init`` takes, or None where no critic was fitted.
        digest: content digest of the settings.
        settings: what the digest covers.
        steps: stream → environment steps.
        wall: seconds.
        notes: sentences that a reader of the curve should know.
    """

    curve: pd.DataFrame
    checkpoints: Mapping[str, Mapping[str, Tensor]]
    policy: nn.Module
    critic: Mapping[str, Tensor] | None
    digest: str
    settings: Mapping[str, object]
    steps: Mapping[str, int]
    wall: float
    notes: tuple[str, ...]

    def policy_at(self, checkpoint: str) -> nn.Module:
        """Return a copy of the policy at a checkpoint.

        Args:
            checkpoint: a key of ``checkpoints``.

        Returns:
            The policy.
        """
        policy = copy.deepcopy(self.policy)
        policy.load_state_dict(dict(self.checkpoints[checks.one_of("checkpoint", checkpoint, self.checkpoints)]))
        return policy


def state_of(policy: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a policy's state on the CPU."""
    return {name: x.detach().cpu().clone() for name, x in policy.state_dict().items()}
