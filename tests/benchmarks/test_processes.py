"""Workers and meters: what a run in another process reports, and how it fails."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import benchmarks
from benchmarks import measure
from benchmarks.loaders import OWN
from benchmarks.loaders.base import Job
from benchmarks.processes import RunFailedError, probe, run_worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks need /proc")

ROOT = Path(benchmarks.__file__).parents[1]


class TestProcesses:
    def test_probe_knows_what_is_missing(self):
        found = probe(sys.executable, ("numpy", "no_such_module"), ("numpy", "no-such-package"))
        assert found["absent"] == ["no_such_module"]
        assert found["numpy"] == np.__version__
        assert found["no-such-package"] is None

    def test_a_file_that_is_not_an_interpreter_is_named(self):
        with pytest.raises(RunFailedError, match="no-python-here"):
            probe("/no-python-here", (), ())

    @pytest.mark.slow
    def test_worker_that_fails_says_why(self, tmp_path, genes):
        genes.save(tmp_path / "genes.npz")
        job = Job(
            rival=OWN,
            endpoint="csr",
            source=str(tmp_path / "nothing.zarr"),
            genes=str(tmp_path / "genes.npz"),
            sentence_size=2,
            sentences_per_batch=2,
            seconds=0,
        )
        with pytest.raises(RunFailedError, match=r"nothing\.zarr"):
            run_worker("benchmarks._load_worker", json.dumps(asdict(job)))

    def test_processes_that_a_block_started_count(self):
        script = (
            "import json, subprocess, sys, time; from benchmarks.measure import Meter\n"
            "child = 'import sys; held = b\"x\" * 80_000_000; print(flush=True); sys.stdin.read()'\n"
            "with (meter := Meter()):\n"
            "    worker = subprocess.Popen([sys.executable, '-c', child], stdin=-1, stdout=-1)\n"
            "    worker.stdout.readline()\n"
            "worker.communicate()\n"
            "print(json.dumps(meter.used))"
        )
        run = [sys.executable, "-c", script]
        used = json.loads(subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        assert 70e6 < used["peak_over_imports_bytes"] < 200e6
        assert used["rchar"] > 10_000  # what the other interpreter read to start

    def test_chilled_files_come_from_the_disk_and_warm_ones_do_not(self, tmp_path):
        path = tmp_path / "folder" / "file"
        path.parent.mkdir()
        path.write_bytes(os.urandom(8_000_000))
        for prepare, least, most in ((measure.chill, 0, 9e6), (measure.warm, 0, 1e6)):
            prepare(tmp_path)
            before = measure.io_bytes()["read_bytes"]
            path.read_bytes()
            assert least <= measure.io_bytes()["read_bytes"] - before <= most
