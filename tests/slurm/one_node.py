"""A SLURM of one node on the loopback address, out of Debian's packages: python tests/slurm/one_node.py start|stop FOLDER.

Everything lies in FOLDER: the key of munge, configuration, sockets, logs, state. Nothing of a SLURM that is installed for use is
read or changed. Programs find this one by the variables of environment() (``source FOLDER/environment``). It keeps no accounting.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo")
DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIGURATION = """\
ClusterName=varlab
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
# Processes of a job are found by their ancestry, without control groups: containers seldom may make them.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=2
SchedulerParameters=sched_interval=1,batch_sched_delay=1
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> str | None:
    """Return the sentence for what SLURM needs here and does not have."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"SLURM and munge were expected, but {', '.join(absent)} are missing; on Debian: apt install slurm-wlm munge."
    if os.geteuid() != 0:
        return "The rights of root were expected, with which slurmd starts jobs, but this user has not got them; use sudo."
    return None


def environment(folder: Path) -> dict[str, str]:
    """Return the variables by which SLURM's programs find the cluster in ``folder``."""
    return {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}


def start(folder: Path, cores: int | None = None) -> None:
    """Start munged, slurmctld and slurmd, and wait until the node takes jobs.

    Raises:
        RuntimeError: if a program is missing or the node does not come up; logs stay in the folder.
    """
    if lacking := missing_programs():
        raise RuntimeError(lacking)
    folder = folder.resolve()
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    controller, node = _free_ports(2)
    text = CONFIGURATION.format(folder=folder, controller=controller, node=node, cores=cores or os.cpu_count())
    (folder / "slurm.conf").write_text(text)
    (folder / "environment").write_text("".join(f"export {k}={shlex.quote(v)}\n" for k, v in environment(folder).items()))
    at = f"--key-file={key} --socket={folder}/munge.socket --pid-file={folder}/munged.pid --log-file={folder}/munged.log"
    # --force: the folder may be readable by root alone, which munged would otherwise call inaccessible to others.
    _do(["munged", "--force", *at.split(), f"--seed-file={folder}/munge.seed"], folder)
    _do(["slurmctld"], folder)
    _do(["slurmd", "-N", "localhost"], folder)
    end, said = time.monotonic() + 30, ""
    while time.monotonic() < end:
        asked = _run(["sinfo", "-h", "-o", "%t"], folder)
        said = (asked.stdout + asked.stderr).strip()
        if asked.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    logs = "\n".join(f"{name}: {_last_lines(folder / f'{name}.log')}" for name in DAEMONS)
    stop(folder)
    raise RuntimeError(f"An idle node was expected within 30 seconds, but sinfo says '{said}'.\n{logs}")


def stop(folder: Path) -> None:
    """Cancel all jobs and end the three daemons of ``folder``, by the process numbers that they wrote there."""
    folder = folder.resolve()
    if (folder / "slurmctld.pid").exists():
        _do(["scancel", "--user=root"], folder, check=False)
    for name in reversed(DAEMONS):
        file = folder / f"{name}.pid"
        if not file.exists():
            continue
        process = int(file.read_text())
        for number in (signal.SIGTERM, signal.SIGKILL):
            if _runs(process):
                os.kill(process, number)
            end = time.monotonic() + 10
            while _runs(process) and time.monotonic() < end:
                time.sleep(0.1)
        file.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Return whether a process is there and not a zombie, which a container without an init never reaps."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # daemons lie where only root's path leads


def _run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment(folder)}
    return subprocess.run(words, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def _do(words: list[str], folder: Path, check: bool = True) -> None:
    done = _run(words, folder)
    if check and done.returncode:
        stop(folder)
        raise RuntimeError(f"{words[0]} was expected to start, but it ended with {done.returncode}: {done.stderr.strip()}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def _last_lines(path: Path, count: int = 5) -> str:
    return " | ".join(path.read_text(errors="replace").splitlines()[-count:]) if path.exists() else "no log"


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("start", "stop"):
        sys.exit("Two words were expected: start or stop, and the cluster's folder; as in one_node.py start /tmp/one_node.")
    try:
        {"start": start, "stop": stop}[sys.argv[1]](Path(sys.argv[2]))
    except RuntimeError as error:
        sys.exit(str(error))
