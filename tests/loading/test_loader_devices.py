"""Epochs are divided among hosts, and batches are spread over devices and processes."""

import json
import os
import socket
import subprocess
import sys
from collections import Counter

import jax
import numpy as np
import pytest

from tests.support.loaders import loader_of, same_batch


class TestHosts:
    @pytest.mark.parametrize("n_hosts", [1, 2, 3, 8])
    def test_share_the_cells(self, source, n_hosts):
        loaders = [loader_of(source, host=host, n_hosts=n_hosts) for host in range(n_hosts)]
        assert len({len(loader) for loader in loaders}) == 1
        seen = Counter()
        for loader in loaders:
            for batch in loader:
                seen.update(np.asarray(batch.row)[~np.asarray(batch.is_padding)].tolist())
        assert seen == Counter(int(row) for row in loaders[0].rows)
        assert f"host {n_hosts - 1} of {n_hosts}" in repr(loaders[-1]) or n_hosts == 1

    def test_default_to_the_processes_of_jax(self, source):
        loader = loader_of(source)
        assert (loader.host, loader.n_hosts) == (jax.process_index(), jax.process_count()) == (0, 1)


SHARDED = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import lazypert as lp
import lazypert.errors

assert len(jax.devices()) == 4
mesh = Mesh(np.array(jax.devices()), ("data",))
sharding = NamedSharding(mesh, PartitionSpec("data"))
config = lp.PerturbationPipelineConfig(sentence_size=4, sentences_per_batch=4, n_basal_samples=2)
result = lp.PerturbationPipeline(config).setup(sys.argv[1])
for layout in ("dense", "csr"):
    plain = result.loader("train", layout=layout, to="numpy", extras=("pert_emb", "barcode"))
    spread = result.loader("train", layout=layout, sharding=sharding, extras=("pert_emb", "barcode"))
    for one, other in zip(plain, spread, strict=True):
        for name in ("row", "control_row", "pert_code", "is_padding", "pert_emb", "barcode"):
            expected, found = getattr(one, name), getattr(other, name)
            np.testing.assert_array_equal(found, expected)
            assert found.sharding.is_equivalent_to(sharding, found.ndim)
            for number, shard in enumerate(found.addressable_shards):
                assert shard.device == jax.devices()[number]
                np.testing.assert_array_equal(shard.data, expected[4 * number : 4 * number + 4])
        for name, n in (("counts", 16), ("controls", 32)):
            expected, found = getattr(one, name), getattr(other, name)
            if layout == "csr":
                assert {s.data.shape[0] for s in found.data.addressable_shards} == {1}
                expected, found = (jax.jit(lp.SparseRows.to_dense)(rows) for rows in (expected, found))
                assert found.sharding.is_equivalent_to(sharding, 2)
            np.testing.assert_array_equal(np.asarray(found).reshape(n, -1), np.asarray(expected).reshape(n, -1))
            assert len({s.device for s in found.addressable_shards}) == 4
            assert {s.data.shape[0] for s in found.addressable_shards} <= {4, 8}
try:
    result.loader("train", sentence_size=3, sentences_per_batch=1, sharding=sharding)
except lp.errors.ConfigError as error:
    assert "cannot divide a batch of 3 cells" in str(error), error
else:
    raise AssertionError("3 cells on 4 devices")
print("spread")
"""


TWO_PROCESSES = """
import json, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import lazypert as lp
import lazypert.errors

store, port, number = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(number))
assert (jax.process_count(), len(jax.devices()), len(jax.local_devices())) == (2, 4, 2)
sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
config = lp.PerturbationPipelineConfig(train_frac=1.0, valid_frac=0.0, sentence_size=4, sentences_per_batch=3)
result = lp.PerturbationPipeline(config).setup(store)
seen = []
loader = result.loader("train", sharding=sharding)
host_loader = result.loader("train", to="numpy", host=int(number), n_hosts=2)
try:
    result.loader("train", layout="csr", sharding=sharding)
except lp.errors.ConfigError as error:
    assert "over several processes" in str(error)
else:
    raise AssertionError("shapes would differ")
for batch, host_batch in zip(loader, host_loader, strict=True):
    assert batch.row.shape == (24,)
    for name in ("row", "is_padding", "counts", "controls"):
        shards = sorted(getattr(batch, name).addressable_shards, key=lambda shard: shard.index[0].start or 0)
        np.testing.assert_array_equal(np.concatenate([shard.data for shard in shards]), getattr(host_batch, name))
    seen += host_batch.row[~host_batch.is_padding].tolist()
print(json.dumps({"rows": seen, "n_batches": len(loader), "n_cells": len(result.train_indices)}))
"""


class TestDevices:
    @pytest.mark.slow
    def test_batches_are_spread_over_the_devices_of_a_sharding(self, reference):
        environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, "-c", SHARDED, str(reference.store)],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.stdout.strip() == "spread", done.stderr[-3000:]

    @pytest.mark.slow
    def test_each_process_contributes_its_share_of_a_batch(self, reference):
        """Two processes with two devices each: a batch is one array over four devices, and each process reads half."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
        running = [
            subprocess.Popen(
                [sys.executable, "-c", TWO_PROCESSES, str(reference.store), str(port), str(number)],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for number in range(2)
        ]  # fmt: skip
        seen = []
        for process in running:
            output, error = process.communicate(timeout=300)
            assert process.returncode == 0, error[-3000:]
            seen.append(json.loads(output.splitlines()[-1]))
        assert seen[0]["n_batches"] == seen[1]["n_batches"]
        rows = Counter(seen[0]["rows"]) + Counter(seen[1]["rows"])
        assert rows == Counter(range(seen[0]["n_cells"]))

    def test_a_single_device_can_be_chosen(self, source):
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        for one, other in zip(loader_of(source), loader_of(source, sharding=device), strict=True):
            assert same_batch(one, other)
            assert other.counts.devices() == {jax.devices()[0]}
