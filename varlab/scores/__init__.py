"""Scores as a linear map: ``apply``, ``apply_sum`` and ``gram`` without ever building the matrix."""

from varlab.scores.base import BatchScores, ScoreMap
from varlab.scores.choose import make
from varlab.scores.factored import FactoredScores, NotFactored
from varlab.scores.functional import FunctionalScores

__all__ = ["BatchScores", "FactoredScores", "FunctionalScores", "NotFactored", "ScoreMap", "make"]
