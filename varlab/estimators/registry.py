"""Names to estimators: ``make("gae", lam=0.95)`` and ``parse("gae(lam=0.95)")``."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable

from varlab import checks
from varlab.estimators.base import REGISTRY, Estimator

#: Every Φ of the source text, and the estimators of the advantage that it points to.
SOURCE_TEXT = (
    "total_return", "reward_to_go", "constant_baseline", "time_baseline", "value_baseline", "q_value", "advantage",
    "td_residual", "n_step(k=5)", "gae(lam=0.95)",
)  # fmt: skip


def make(name: str, /, **arguments: object) -> Estimator:
    """Return the estimator with a name.

    Args:
        name: a key of ``REGISTRY``.
        **arguments: its arguments.

    Returns:
        The estimator.

    Raises:
        InputError: for an unknown name (the nearest are named) or an unknown argument.
    """
    cls = REGISTRY[checks.one_of("Φ", name, REGISTRY)]
    known = [f.name for f in dataclasses.fields(cls) if f.repr]
    for argument in arguments:
        if argument not in known:
            raise checks.InputError(
                f"Φ {name} takes {'the arguments ' + ', '.join(known) if known else 'no arguments'}, but {argument}="
                f"{arguments[argument]!r} was given; leave it out or correct its name."
            )
    return cls(**arguments)


def parse(text: str) -> Estimator:
    """Return the estimator written as ``name`` or ``name(argument=value, …)``.

    Args:
        text: for example ``gae(lam=0.95)``, ``n_step(5)`` or ``optimal_baseline(of=time)``; words need no quotes.

    Returns:
        The estimator.

    Raises:
        InputError: if the text is not of that form.
    """
    name, opening, _ = text.strip().partition("(")
    if not opening:
        return make(name)
    words = name in REGISTRY and any(isinstance(f.default, str) for f in dataclasses.fields(REGISTRY[name]) if f.repr)
    try:
        call = ast.parse(text.strip(), mode="eval").body
        keywords = {str(k.arg): _literal(k.value, words) for k in call.keywords}
        positional = [_literal(a, words) for a in call.args]
    except (SyntaxError, ValueError, AttributeError) as error:
        raise checks.InputError(
            f"A Φ written like gae(lam=0.95) was expected, but it is '{text}'; correct its arguments."
        ) from error
    checks.one_of("Φ", name, REGISTRY)
    fields = [f.name for f in dataclasses.fields(REGISTRY[name]) if f.repr]
    if len(positional) > len(fields):
        raise checks.InputError(f"Φ {name} takes {len(fields)} arguments, but '{text}' gives {len(positional)}; leave some out.")
    given = dict(zip(fields, positional, strict=False))
    twice = sorted(given.keys() & keywords.keys())
    if twice:
        raise checks.InputError(f"Φ {name} takes each argument once, but '{text}' gives {twice[0]} twice; leave one out.")
    return make(name, **given, **keywords)


def _literal(node: ast.expr, words: bool) -> object:
    """Return the value of an argument; a word without quotes stands for itself where ``words``."""
    return node.id if words and isinstance(node, ast.Name) else ast.literal_eval(node)


def resolve(choices: Iterable[str | Estimator] | str | Estimator) -> tuple[Estimator, ...]:
    """Return estimators for names or objects.

    Raises:
        InputError: for an empty list, something that is neither a name nor an estimator, or a label that occurs twice.
    """
    listed = [choices] if isinstance(choices, (str, Estimator)) else list(choices)
    out = []
    for choice in listed:
        if not isinstance(choice, (str, Estimator)):
            raise checks.InputError(
                f"Names of Φ or Estimator objects were expected, but came {choice!r}; write for instance 'gae(lam=0.95)'."
            )
        out.append(parse(choice) if isinstance(choice, str) else choice)
    labels = [e.label for e in out]
    if not labels or len(set(labels)) < len(labels):
        double = sorted({x for x in labels if labels.count(x) > 1})
        raise checks.InputError(
            "At least one Φ was expected, but the list is empty; name for instance total_return."
            if not labels
            else f"Each Φ once was expected, but {', '.join(double)} occurs more than once; leave the repetition out."
        )
    return tuple(out)
