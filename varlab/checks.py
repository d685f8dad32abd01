"""Guards at the borders of rooms: every message says what was expected, what came and how to mend it."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a mistyped setting is told without waiting for torch
    import torch
    from torch import Tensor


#: Names that one sentence may list.
MOST = 12


class InputError(ValueError):
    """Input that varlab cannot use; the message is one sentence for the user."""


def nearest(word: str, known: Iterable[str], count: int = 3) -> str:
    """Return the ``count`` members of ``known`` closest to ``word`` as text; if none is close, all of them, or a dozen."""
    known = sorted(known)
    # Compare without case first: "cartpole" should find "CartPole-v1".
    lower = {k.lower(): k for k in known}
    close = [lower[k] for k in difflib.get_close_matches(word.lower(), lower, n=count, cutoff=0.5)]
    return ", ".join(close or [*known[:MOST], *(["…"] if len(known) > MOST else [])])


def one_of(what: str, word: str, known: Iterable[str]) -> str:
    """Return ``word`` if it is among ``known``.

    Args:
        what: what the word names, for the message.
        word: the word given.
        known: the words accepted.

    Returns:
        The word.

    Raises:
        InputError: naming the nearest known words.
    """
    known = list(known)
    if word not in known:
        raise InputError(f"No {what} is called '{word}'; the nearest names are {nearest(str(word), known)}.")
    return word


def positive_int(what: str, value: object, least: int = 1) -> int:
    """Return ``value`` as an int of at least ``least``.

    Raises:
        InputError: if it is not one.
    """
    whole = isinstance(value, numbers.Integral) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < least:
        raise InputError(f"{what} must be a whole number of at least {least}, but it is {value!r}; set {what} to such a number.")
    return int(value)


def in_range(what: str, value: float, low: float, high: float) -> float:
    """Return ``value`` if low ≤ value ≤ high.

    Raises:
        InputError: if it lies outside or is not a number.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not low <= number <= high:
        raise InputError(f"{what} must lie in [{low:g}, {high:g}], but it is {value!r}; set {what} inside that range.")
    return number


def folder(path: str | Path, remedy: str) -> None:
    """Refuse a folder that cannot be one; it need not exist.

    Args:
        path: of the folder.
        remedy: how to mend it, for the message.

    Raises:
        InputError: if a file lies there, or in the place of a folder above it.
    """
    for place in (Path(path), *Path(path).parents):
        if place.exists() and not place.is_dir():
            raise InputError(f"A folder was expected at {place}, but it is a file; {remedy}.")


def finite_rows(what: str, x: Tensor, env: str, first_trajectory: int, time: int | Tensor, episode: Tensor) -> None:
    """Check that a flat quantity has no NaN and no infinity.

    Args:
        what: ``reward``, ``observation`` or another name for the message.
        x: [m, ...] rows.
        env: name of the environment.
        first_trajectory: number of the first trajectory of this part within the run.
        time: the step t of all rows, or of each.
        episode: [m] index of each row's trajectory within the part.

    Raises:
        InputError: naming environment, trajectory and step of the first bad row.
    """
    if not x.is_floating_point() or x.sum().isfinite():  # a finite sum is the cheap proof that every entry is finite
        return
    good = x.reshape(x.shape[0], -1).isfinite().all(1)
    if bool(good.all()):
        return  # a huge but finite batch whose sum overflowed
    row = int((~good).nonzero()[0])
    t = int(time if isinstance(time, int) else time[row])
    value = x[row].detach().cpu().numpy()
    raise InputError(
        f"A finite {what} was expected from {env}, but trajectory {first_trajectory + int(episode[row])} gave {value} at "
        f"step {t}; mend the environment or the policy that produced it."
    )


def finite_gradients(norm_sq: Tensor, labels: Sequence[str], env: str, what: str, first: int = 0) -> None:
    """Check that no gradient is NaN or infinite.

    Args:
        norm_sq: [U, K] ‖g‖².
        labels: of the K choices of Φ.
        env: name of the environment.
        what: whose gradients they are: ``trajectory`` or another name for the message.
        first: number of the first.

    Raises:
        InputError: naming the first bad one and its Φ.
    """
    good = norm_sq.isfinite()
    if bool(good.all()):
        return
    row, k = (~good).nonzero()[0].tolist()
    raise InputError(
        f"Finite gradients were expected on {env}, but {labels[k]} gave NaN or infinity at {what} {first + row}; look at θ and "
        "at the values there, or use dtype=float64."
    )


def device_of(device: str | torch.device) -> torch.device:
    """Return a usable torch device.

    Raises:
        InputError: if the name is unknown or the device is absent.
    """
    import torch

    try:
        wanted = torch.device(device)
        torch.empty(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"A usable torch device was expected, but '{device}' is not one here ({str(error).splitlines()[0]}); use device=cpu."
        ) from error
    return wanted


def dtype_of(name: str) -> torch.dtype:
    """Return ``float32`` or ``float64`` as a torch dtype."""
    import torch

    return getattr(torch, one_of("dtype", name, ("float32", "float64")))
