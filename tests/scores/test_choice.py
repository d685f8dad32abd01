"""Which score map serves a policy, what the log says of it, and what no score map can serve."""

import copy
import logging

import pytest
import torch
from score_policies import ACTIONS, DIMENSIONS, FEATURES, STATES, Head, MixesRows, Twice, TwoPathsFunctional, cases
from torch import nn
from torch.distributions import Categorical, Independent, Normal

from varlab import policies, scores
from varlab.checks import InputError

CASES = cases()


def probe(case=None, m=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    kind = "features" if case is None else case.obs
    obs = (
        torch.randint(STATES, (m,), generator=generator)
        if kind == "states"
        else torch.randn(m, FEATURES, generator=generator).double()
    )
    if kind == "images":
        obs = torch.randn(m, 1, 4, 4, generator=generator).double()
    if case is not None and not case.discrete:
        return obs, torch.randn(m, DIMENSIONS, generator=generator).double()
    return obs, torch.randint(ACTIONS, (m,), generator=generator)


@pytest.mark.parametrize("name", CASES)
def test_the_right_form_is_chosen_and_the_log_names_the_reason(name, caplog):
    case = CASES[name]
    with caplog.at_level(logging.INFO, logger="varlab"):
        found = scores.make(case.policy, *probe(case))
    lines = [r.getMessage() for r in caplog.records]
    if case.culprit is None:
        assert found.kind == "factored" and not lines
    else:
        assert found.kind == "functional" and len(lines) == 1
        assert f"scores of {type(case.policy).__name__} come from torch.func because of parameter '{case.culprit}'" in lines[0]


@pytest.mark.parametrize("name", ["inplace relu", "inplace residual"])
def test_changes_in_place_are_found_even_where_the_probe_cannot_feel_them(name):
    """An inplace ReLU is the identity on a probe whose units are all positive; elsewhere it is not."""
    policy = copy.deepcopy(CASES[name].policy)
    with torch.no_grad():
        next(m for m in policy.modules() if isinstance(m, nn.Linear)).bias.fill_(100.0)
    assert scores.make(policy, *probe()).kind == "functional"


@pytest.mark.parametrize("option", [{"padding_idx": 4}, {"scale_grad_by_freq": True}, {"max_norm": 9.0}])
def test_embeddings_with_options_are_not_factored_whatever_the_probe_holds(option):
    policy = Head(nn.Embedding(STATES, ACTIONS, **option)).double()
    obs = torch.tensor([0, 1, 2, 3])  # neither the padding row, nor one state twice
    assert scores.make(policy, obs, torch.tensor([0, 1, 2, 0])).kind == "functional"


def test_a_policy_that_mixes_rows_is_refused():
    with pytest.raises(
        InputError, match="treats every observation by itself was expected on World.*alone and .* in a batch of 8"
    ):
        scores.make(MixesRows().double(), *probe(), env="World")
    training = Head(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4), nn.Linear(4, ACTIONS)).double()
    with pytest.raises((InputError, ValueError), match="by itself|more than 1 value per channel"):
        scores.make(training.train(), *probe())


def test_a_module_that_vmap_refuses_is_served_by_a_loop_and_the_log_says_so(caplog):
    case = CASES["one-hot by hand"]
    obs, action = probe(case)
    with caplog.at_level(logging.INFO, logger="varlab"):
        at = scores.make(case.policy, obs, action).at(obs.view(2, 4), action.view(2, 4))
        for _ in range(2):
            at.apply(torch.ones(2, 1, 4).double())
    assert sum("OneHot does something that vmap cannot do" in r.getMessage() for r in caplog.records) == 1


def test_an_error_of_the_policy_itself_is_not_taken_for_one_of_vmap():
    class Breaks(type(CASES["layer norm"].policy)):
        broken = False

        def forward(self, obs):
            if self.broken:
                raise RuntimeError("out of luck")
            return super().forward(obs)

    policy = Breaks(nn.Linear(FEATURES, 4), nn.LayerNorm(4), nn.Linear(4, ACTIONS)).double()
    obs, action = probe()
    found = scores.make(policy, obs, action)
    found.skeleton.broken = True
    with pytest.raises(RuntimeError, match="out of luck"):
        found.at(obs.unsqueeze(0), action.unsqueeze(0)).apply(torch.ones(1, 1, 8).double())


class Returns(nn.Module):
    def __init__(self, law):
        super().__init__()
        self.net, self.law = nn.Linear(FEATURES, ACTIONS), law

    def forward(self, obs):
        return self.law(self.net(obs))


@pytest.mark.parametrize(
    ("law", "words"),
    [
        (lambda x: x, "torch Distribution was expected, but it gave Tensor"), (lambda x: None, "but it gave NoneType"),
        (lambda x: Independent(Normal(x[:, 0], 1.0), 1), "One log-probability per observation was expected .* on World"),
        (lambda x: Categorical(logits=x[:1]), "treats every observation by itself was expected on World"),
        (lambda x: Normal(x, 1.0), r"over actions of shape \(\) was expected for World"),
    ],
)  # fmt: skip
def test_a_forward_that_is_no_distribution_over_the_actions_is_refused(law, words):
    with pytest.raises(InputError, match=words):
        scores.make(Returns(law).double(), *probe(m=8), env="World")


@pytest.mark.parametrize(
    "policy", [Twice(paths=True), TwoPathsFunctional(), *(CASES[n].policy for n in ("tied weights", "batch norm"))]
)
def test_functional_scores_leave_the_live_module_as_it_was(policy):
    policy = policy.double().eval()
    obs, action = probe()
    before = {k: (v, v.clone()) for k, v in policy.state_dict(keep_vars=True).items()}
    held = {n: id(p) for n, p in policy.named_parameters(remove_duplicate=False)}
    output = policy(obs).logits.detach().clone()
    found = scores.make(policy, obs, action)
    assert found.kind == "functional"
    at, phi = found.at(obs.view(2, 4, -1), action.view(2, 4)), torch.ones(2, 1, 4).double()
    first = [at.apply(phi), at.apply_sum(phi), at.gram(2)]
    second = [at.apply(phi), at.apply_sum(phi), at.gram(2)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    after = policy.state_dict(keep_vars=True)
    assert all(after[k] is v and torch.equal(v, copied) for k, (v, copied) in before.items())
    assert {n: id(p) for n, p in policy.named_parameters(remove_duplicate=False)} == held
    assert torch.equal(policy(obs).logits, output)
    policy(obs).logits.sum().backward()  # it still trains
    assert all(p.grad is not None for p in policy.parameters())


@pytest.mark.parametrize("name", ["mlp categorical", "layer norm", "bare log σ"])
def test_score_maps_leave_neither_gradients_nor_hooks_behind(name):
    case = CASES[name]
    obs, action = probe(case)
    found = scores.make(case.policy, obs, action)
    for grad_mode in (torch.no_grad(), torch.enable_grad()):
        with grad_mode:
            at = found.at(obs.unsqueeze(0), action.unsqueeze(0))
            out = at.apply(torch.ones(1, 1, 8).double()), at.apply_sum(torch.ones(1, 1, 8).double()), at.gram()
            assert not any(x.requires_grad for x in out)
    assert all(p.grad is None and p.requires_grad for p in case.policy.parameters())
    assert not any(m._forward_hooks for m in case.policy.modules())


def test_an_error_inside_the_policy_leaves_no_hooks():
    class Breaks(Head):
        broken = False

        def forward(self, obs):
            law = super().forward(obs)
            if self.broken:
                raise KeyError("inside")
            return law

    policy = Breaks(nn.Linear(FEATURES, ACTIONS)).double()
    obs, action = probe()
    found = scores.make(policy, obs, action)
    policy.broken = True
    with pytest.raises(KeyError):
        found.at(obs.unsqueeze(0), action.unsqueeze(0))
    assert not any(m._forward_hooks for m in policy.modules())


def test_a_prepared_policy_keeps_the_factored_form():
    for case in (CASES["mlp categorical"], CASES["layer norm"]):
        policy = policies.prepare(case.policy, torch.float64, "cpu")
        obs, action = probe(case)
        found, plain = scores.make(policy, obs.float(), action), scores.make(case.policy, obs.float().double(), action)
        assert found.kind == plain.kind
        phi = torch.ones(1, 1, 8).double()
        mine = found.at(obs.float().unsqueeze(0), action.unsqueeze(0)).apply(phi)
        torch.testing.assert_close(
            mine, plain.at(obs.float().double().unsqueeze(0), action.unsqueeze(0)).apply(phi), rtol=0, atol=1e-12
        )
