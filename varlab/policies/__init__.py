"""Policies: softmax table, linear, MLP, and any ``nn.Module`` whose forward gives a torch Distribution."""

from varlab.policies.base import Broadcast, CategoricalRows, log_prob, num_parameters, parameters, prepare, sample
from varlab.policies.networks import MLP, Linear, Logistic, SoftmaxTable
from varlab.policies.parameter_exploring import Controller, ParameterDistribution
from varlab.policies.registry import KINDS, make

__all__ = [
    "KINDS",
    "MLP",
    "Broadcast",
    "CategoricalRows",
    "Controller",
    "Linear",
    "Logistic",
    "ParameterDistribution",
    "SoftmaxTable",
    "log_prob",
    "make",
    "num_parameters",
    "parameters",
    "prepare",
    "sample",
]
