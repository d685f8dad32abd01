"""Vanilla policy gradient with any Φ of the catalogue: it gives θ's to measure at, and learning curves."""

from varlab.training.critics import CriticUpdates
from varlab.training.loop import run, train
from varlab.training.plans import TrainingPlan, plan
from varlab.training.record import COLUMNS, Training

__all__ = ["COLUMNS", "CriticUpdates", "Training", "TrainingPlan", "plan", "run", "train"]
