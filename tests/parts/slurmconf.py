"""The slurm.conf of a throwaway cluster, as text."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from pathlib import Path

SLURM_USER = "slurm"
CPUS = 4  # that each node claims, whatever this host has

# Lines that may stand more than once or hold several settings: always added, never replaced.
_REPEATABLE = {"include", "nodename", "partitionname", "nodeset", "downnodes"}
_SETTING = re.compile(r"(\w+)\s*=\s*(.*)")


def slurm_conf(
    directory: Path,
    *,
    nodes: Sequence[str],
    ports: Sequence[int],
    addresses: Sequence[str],
    settings: dict[str, str],
    extra: str,
) -> str:
    """Return the file for nodes that all live on this host below one directory.

    ports, addresses: one for slurmctld, then one for each node. settings: what the caller's
    parameters ask for. extra: lines of slurm.conf; a setting there takes the place of ours, as a
    second line of the same name makes every Slurm command complain. AuthInfo is the exception: ours
    names the munge socket, so its options are replaced one by one.
    """
    host = socket.gethostname().split(".")[0]
    merged = {**_defaults(directory, f"{host}({addresses[0]})", ports[0]), **settings}
    names = {name.lower(): name for name in merged}
    added = []
    for line in extra.splitlines():
        text = line.partition("#")[0].strip()
        found = _SETTING.fullmatch(text)
        if found is None or found[1].lower() in _REPEATABLE:
            added.append(text)
            continue
        name, value = names.get(found[1].lower(), found[1]), found[2]
        merged[name] = _join(merged[name], value) if name == "AuthInfo" else value
    lines = [f"{name}={value}" for name, value in merged.items() if value]
    for node, address, port in zip(nodes, addresses[1:], ports[1:], strict=True):
        where = f"NodeHostname={host} NodeAddr={address} Port={port}"
        lines.append(f"NodeName={node} {where} CPUs={CPUS} RealMemory=2000")
    lines.append(f"PartitionName=test Nodes={','.join(nodes)} Default=YES MaxTime=INFINITE")
    return "\n".join([*lines, *added, ""])


def _join(ours: str, theirs: str) -> str:
    given = {option.partition("=")[0] for option in theirs.split(",")}
    kept = [option for option in ours.split(",") if option.partition("=")[0] not in given]
    return ",".join([*kept, theirs])


def _defaults(directory: Path, host: str, port: int) -> dict[str, str]:
    return {
        "ClusterName": "test",
        "SlurmctldHost": host,
        "SlurmctldPort": str(port),
        "SlurmUser": SLURM_USER,
        "AuthType": "auth/munge",
        # A requeued job waits for cred_expire, 120 s by default, before it starts again.
        "AuthInfo": f"socket={directory}/munge/socket,cred_expire=5",
        "StateSaveLocation": f"{directory}/state",
        "SlurmdSpoolDir": f"{directory}/spool/%n",
        "SlurmctldPidFile": f"{directory}/state/slurmctld.pid",
        "SlurmdPidFile": f"{directory}/spool/%n.pid",
        "SlurmctldLogFile": f"{directory}/log/slurmctld.log",
        "SlurmdLogFile": f"{directory}/log/%n.log",
        "SlurmctldDebug": "debug",
        "SlurmdDebug": "debug",
        # The nodes claim more CPUs and memory than this host may have.
        "SlurmdParameters": "config_overrides",
        # No cgroups: they would have to be delegated to us.
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "MpiDefault": "none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU",
        # A node that was stopped and comes back is idle without an operator.
        "ReturnToService": "2",
        # Tests wait for each of these.
        "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,sched_min_interval=0",
        "KillWait": "2",
        "EpilogMsgTime": "0",
    }
