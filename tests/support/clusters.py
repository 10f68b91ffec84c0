"""Clusters of processes on this machine, and workers that do not see the client's files."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys

import pytest


@contextlib.contextmanager
def local_cluster(n_workers=2):
    """Client of a cluster of processes with one thread each."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def kill_a_worker(client):
    """Kill one worker of a cluster as the system would, and return its address."""
    address, pid = next(iter(client.run(os.getpid).items()))
    os.kill(pid, signal.SIGKILL)
    return address


@contextlib.contextmanager
def blind_worker(client, folder):
    """Add a worker in a mount namespace of its own, where `folder` is empty; yields its address."""
    hide = f"mount -t tmpfs none {shlex.quote(str(folder))}"
    if subprocess.run(["unshare", "-m", "sh", "-c", hide], capture_output=True).returncode:
        pytest.skip("needs the right to make a mount namespace (unshare -m)")
    known = set(client.run(os.getpid))
    options = f"{client.scheduler.address} --nthreads 1 --no-nanny --no-dashboard --name blind --death-timeout 60"
    command = f"{hide} && cd / && exec {sys.executable} -m distributed.cli.dask_worker {options}"
    process = subprocess.Popen(["unshare", "-m", "sh", "-c", command], stderr=subprocess.DEVNULL)
    try:
        client.wait_for_workers(len(known) + 1, timeout=60)
        (address,) = set(client.run(os.getpid)) - known
        yield address
    finally:
        process.terminate()
        process.wait(30)
