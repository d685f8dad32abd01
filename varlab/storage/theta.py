"""θ on disk: tensors by the names of the policy's parameters, and nothing that could run as code."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from varlab import checks
from varlab.checks import InputError
from varlab.storage.atomic import read_npz, write_npz, write_tensors
from varlab.storage.cache import UNREADABLE, first_line
from varlab.storage.digests import digest


def save_theta(path: str | Path, policy: nn.Module | Mapping[str, Tensor]) -> str:
    """Write the state of a policy: an npz archive where the name ends so, else a torch file of tensors.

    Args:
        path: file to write.
        policy: module whose ``state_dict`` is written, or such a state.

    Returns:
        The digest of its content, as :func:`load_theta` gives it.
    """
    held = policy.state_dict() if isinstance(policy, nn.Module) else policy
    state = {name: tensor.detach().cpu() for name, tensor in held.items()}
    if Path(path).suffix == ".npz":
        write_npz(path, {name: tensor.numpy() for name, tensor in state.items()})
    else:
        write_tensors(path, state)
    return digest(state)


def load_theta(path: str | Path, policy: nn.Module) -> str:
    """Read θ into a policy; on any error the policy keeps the θ it had.

    Args:
        path: an npz archive, or a torch file of a mapping from names to tensors.
        policy: module whose ``state_dict`` names the tensors and their shapes.

    Returns:
        The digest of the file's tensors (their content, not its path).

    Raises:
        InputError: if the file is missing, damaged or holds anything but tensors, or if a name, a shape or a number does not
            fit the policy.
    """
    given = read_tensors(path)
    wanted = policy.state_dict()
    for name in wanted:
        if name not in given:
            raise InputError(
                f"A parameter '{name}' of shape {tuple(wanted[name].shape)} was expected in {path}, but it holds "
                f"{', '.join(sorted(given)) or 'nothing'}; save θ from a policy of the same kind."
            )
    for name, tensor in given.items():
        if name not in wanted:
            raise InputError(
                f"Only the policy's parameters {', '.join(wanted)} were expected in {path}, but it also holds '{name}' "
                f"(nearest: {checks.nearest(name, wanted, 1)}); remove it or choose the policy that θ was saved from."
            )
        if tensor.shape != wanted[name].shape:
            raise InputError(
                f"Parameter '{name}' of shape {tuple(wanted[name].shape)} was expected in {path}, but it has shape "
                f"{tuple(tensor.shape)}; save θ from a policy of the same kind and size for the same environment."
            )
        if tensor.is_complex() or not bool(torch.isfinite(tensor).all()):
            raise InputError(f"Finite real numbers were expected for '{name}' in {path}, but some are not; save another θ.")
    policy.load_state_dict(given)
    return digest(given)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a mapping from names to tensors without running any code that the file may hold.

    Args:
        path: an npz archive, or a torch file.

    Returns:
        The tensors by name.

    Raises:
        InputError: if the file is missing, damaged or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"A file of parameters was expected at {path}, but there is none; mend the path.")
    try:
        if path.suffix == ".npz":
            held = {name: torch.from_numpy(array) for name, array in read_npz(path).items()}
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch wonders at foreign pickles; the error below says more
                held = torch.load(path, map_location="cpu", weights_only=True)
    except (*UNREADABLE, RuntimeError, pickle.UnpicklingError, AttributeError) as error:
        raise InputError(
            f"Tensors alone were expected in {path}, but it is damaged or holds pickled code, which is never run "
            f"({first_line(error)}); save policy.state_dict() instead."
        ) from error
    if not isinstance(held, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in held.items()):
        raise InputError(
            f"A mapping from names to tensors was expected in {path}, but it holds something else; save policy.state_dict()."
        )
    return held
