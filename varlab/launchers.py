"""What is said when one of Hydra's launchers is missing, or when one of its jobs was killed."""

from __future__ import annotations

from varlab import checks

#: The extra of varlab that installs a launcher, by its name after ``hydra/launcher=``.
EXTRAS = {"joblib": "parallel", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray", "ray_cluster": "ray"}
#: Packages whose exceptions, out of a multirun, tell of a job that gave no result.
_CARRIERS = ("submitit", "joblib", "ray")


def unknown(choice: str) -> str:
    """Return the sentence for a launcher that Hydra does not find.

    Args:
        choice: the name after ``hydra/launcher=``.

    Returns:
        What to install, or the names nearest to it.
    """
    if choice in EXTRAS:
        return (
            f"The launcher '{choice}' was expected to be installed, but it is not; install the extra that brings it: "
            f"pip install -e '.[{EXTRAS[choice]}]'."
        )
    near = checks.nearest(choice, [*EXTRAS, "local"])
    return f"No choice of hydra/launcher is called '{choice}'; the nearest names are {near}."


def lost_job(error: BaseException) -> str | None:
    """Return the sentence for a job that ended without giving anything back (killed, out of memory or time, node lost).

    Args:
        error: what a launcher raised.

    Returns:
        One sentence; None for an error that no launcher made.
    """
    if isinstance(error, ConnectionError) and "ray" in str(error).lower():
        said = " ".join(str(error).split())[:120]
        return (
            f"A running Ray cluster was expected, but there is none where the launcher looked ({said}); start one with "
            "'ray start --head', set hydra.launcher.ray.init.address, or use hydra/launcher=ray."
        )
    if type(error).__module__.split(".")[0] not in _CARRIERS:
        return None
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "").rstrip(".:")
    return (
        f"A result of every job was expected, but at least one ended without any ({type(error).__name__}: {first}); the "
        "finished jobs are kept, so repeat the same command to finish the multirun."
    )
