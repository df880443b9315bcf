"""The graph of artefacts on a real SLURM: controller and node on this machine, on loopback.

    slurm.py [--cores N]

The data and diffusers of the quick profile's mazes are trained as jobs of their own, in an empty
store; the first diffuser that has written a checkpoint is requeued, which kills it. In the end all
must be there, that one must have been started again and be, bit for bit, what an undisturbed run
makes, and a second call of Snakemake must find nothing left to do.
It is `make slurm`; it needs Debian's packages slurm-wlm and munge, and may have to be root.
"""

import argparse
import contextlib
import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import artefact_graph as graph

from rrlib import disk
from rrlib.lab import store

ROOT = Path(__file__).resolve().parent.parent
KIND = "MazeDiffuser"
COMMANDS = "munged", "mungekey", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol"
CONF = """ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MinJobAge=86400
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=here Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--chapters", nargs="+", default=["05_maze_data", "08_small_data"])
    args = parser.parse_args()
    os.environ["PATH"] += ":/usr/sbin"  # where Debian has daemons
    check_installed(os.environ["PATH"])
    folder = ROOT / "_run" / "slurm"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ |= {"RRLIB_STORE": str(folder / "artefacts"), "RRLIB_FRESH": "1"}
    with cluster(folder / "cluster", args.cores) as conf:
        os.environ["SLURM_CONF"] = str(conf)
        train(folder, args.chapters)


def check_installed(path: str) -> None:
    """End with one line unless SLURM's programs are on a search path."""
    if lacking := [name for name in COMMANDS if shutil.which(name, path=path) is None]:
        sys.exit(f"{', '.join(lacking)} not found: apt-get install slurm-wlm munge")


@contextlib.contextmanager
def cluster(folder: Path, cores: int) -> Iterator[Path]:
    """munged, slurmctld and slurmd, this user's own, in a folder; their configuration."""
    folder.mkdir()
    for name in ("state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o755)  # munged wants no folder that others may write
    host = socket.gethostname().partition(".")[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    given = {"folder": folder, "host": host, "user": getpass.getuser(), "cores": cores}
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(**given, memory=memory * 9 // 10, ports=free_ports(2)))
    key = folder / "munge.key"
    subprocess.run(["mungekey", "--create", f"--keyfile={key}"], check=True)
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
    daemons = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files],
        ["slurmctld", "-D", "-c", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf), "-N", host],
    ]
    running = []
    try:
        for daemon in daemons:
            log = (folder / f"{daemon[0]}.out").open("w")
            running.append(subprocess.Popen(daemon, stdout=log, stderr=log))
            time.sleep(2)
        yield conf
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(60)


def free_ports(n: int) -> list[int]:
    """Ports of the loopback that nobody listens at."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def train(folder: Path, chapters: list[str]) -> None:
    """The diffusers as jobs, one of them requeued, and what must hold in the end."""
    plan = graph.plan("quick")
    asked = dict.fromkeys(key for chapter in chapters for key in plan["chapters"][chapter])
    wanted = [key for key in asked if plan["artefacts"][key]["kind"] == KIND]
    command = [sys.executable, "-m", "snakemake", *(f"artefacts/{key}" for key in wanted)]
    command += ["--snakefile", str(ROOT / "workflow/Snakefile"), "--directory", str(folder / "run")]
    command += ["--config", "profile=quick", "unit=artefact", "--profile", "none"]
    submitted = [*command, "--executor", "slurm", "--jobs", "20", "--latency-wait", "60"]
    submitted += [
        "--slurm-init-seconds-before-status-checks",
        "5",
        "--slurm-requeue",
        "--slurm-no-account",
    ]
    submitted += ["--seconds-between-status-checks", "5", "--slurm-logdir", str(folder / "logs")]
    print(f"{len(wanted)} diffusers of {', '.join(chapters)} as jobs", flush=True)
    run = subprocess.Popen(
        submitted, stdout=(folder / "snakemake.log").open("w"), stderr=subprocess.STDOUT
    )
    key, job = requeue_one(run, folder / "artefacts" / KIND)
    print(f"job {job}, which trains {key}, is requeued after its first checkpoint", flush=True)
    if run.wait():
        sys.exit(f"a job failed: {folder}/snakemake.log")
    check(folder, wanted, key, job)
    again = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True)
    expect("Nothing to be done" in again.stdout + again.stderr, "a second call has nothing to do")


def requeue_one(run: subprocess.Popen, diffusers: Path) -> tuple[str, str]:
    """Requeue the first job that has a checkpoint: the key of its artefact, and its number."""
    while run.poll() is None:
        for checkpoint in diffusers.glob(".*.partial/checkpoints/*.safetensors"):
            key = checkpoint.parent.parent.name.split(".")[1]
            listed = slurm("squeue", "--noheader", "--states=RUNNING", "--format=%i %k")
            for line in listed.splitlines():
                job, _, comment = line.partition(" ")
                if key in comment:
                    slurm("scontrol", "requeue", job)
                    return key, job
        time.sleep(1)
    sys.exit("the run ended before any job had a checkpoint")


def check(folder: Path, wanted: list[str], requeued: str, job: str) -> None:
    """What the jobs left: all artefacts whole, one job started twice, and it went on."""
    manifests = {
        key: disk.read_json(folder / "artefacts" / KIND / key / store.MANIFEST) for key in wanted
    }
    expect(len(manifests) == len(wanted), f"{len(manifests)} of {len(wanted)} diffusers are made")
    restarts = re.search(r"Restarts=(\d+)", slurm("scontrol", "show", "job", job))
    expect(restarts is not None and int(restarts[1]) >= 1, f"job {job} was started again")
    alone = undisturbed(folder, requeued)
    same = alone["sha256"] == manifests[requeued]["sha256"]
    expect(same, "its weights are those of a run that nothing disturbed, bit for bit")


def undisturbed(folder: Path, key: str) -> dict:
    """The manifest of an artefact that is made again, in one go, in a store that has the others."""
    beside = folder / "alone"
    shutil.copytree(folder / "artefacts", beside, ignore=lambda _, names: {key} & {*names})
    command = [sys.executable, str(ROOT / "workflow/artefact_graph.py"), "make", "quick", key]
    subprocess.run(command, env=os.environ | {"RRLIB_STORE": str(beside)}, check=True)
    return disk.read_json(beside / KIND / key / store.MANIFEST)


def expect(holds: bool, what: str) -> None:
    """Say what holds; end with an error where it does not."""
    if not holds:
        sys.exit(f"not so: {what}")
    print(f"{what}: yes", flush=True)


def slurm(*command: str) -> str:
    """What one of SLURM's commands says."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
