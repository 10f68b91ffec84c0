"""Fingerprints identify the cells that a loader delivered."""

import sys

import numpy as np
import pytest

from benchmarks import fingerprints as checks
from benchmarks.loaders.base import Genes, fingerprints

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks need /proc")


class TestFingerprints:
    def told(self, genes, adata, rows, form="csr"):
        values = adata.X[rows]
        if form != "csr":
            values = values.toarray()
        return fingerprints(values[:, genes.hvg] if form == "hvg" else values, genes.weights_of(form))

    @pytest.mark.parametrize("form", ["csr", "dense", "hvg"])
    def test_every_cell_is_known(self, genes, cells, adata, form):
        rows = np.random.default_rng(0).permutation(adata.n_obs)
        numbers = [cells.number[form][value] for value in self.told(genes, adata, rows, form)]
        assert all(number in (row, -1) for number, row in zip(numbers, rows.tolist(), strict=True))
        assert form == "hvg" or numbers == rows.tolist()

    def test_sparse_rows_of_any_kind_are_identified(self, genes, adata):
        class Rows:
            indptr = None  # not SciPy's

            def to_scipy(self):
                return adata.X[:5]

        assert fingerprints(Rows(), genes.weights) == self.told(genes, adata, slice(5), "dense")
        assert fingerprints(adata.X[:6].toarray().reshape(3, 2, -1), genes.weights)[:5] == self.told(
            genes, adata, slice(5)
        )

    def test_problems_are_reported(self, genes, cells, adata):
        groups = adata.obs.groupby(["cell_type", "perturbation"], observed=True).indices
        large = [rows for (_, label), rows in groups.items() if len(rows) >= 4 and label != "non-targeting"]
        control = {kind: rows for (kind, label), rows in groups.items() if label == "non-targeting"}
        rows = large[0][:4]
        mine, other = (
            control[kind][:4] for kind in sorted(control, key=lambda k: k != adata.obs["cell_type"].iloc[rows[0]])
        )

        def found(rows, controls=(), size=4):
            run = {"rows": self.told(genes, adata, rows), "control_rows": self.told(genes, adata, list(controls))}
            return checks.problems(run, cells, form="csr", controls=len(controls) > 0, sentence_size=size)

        assert found(rows) == []
        assert found(rows, mine) == []
        mixed = [*large[0][:3], large[1][0]]
        assert found(mixed) == ["1 of 1 sentences contain cells of several groups"]
        assert found(mixed, size=None) == []
        assert found(rows, mine[:3]) == ["4 cells have 3 controls"]
        assert found(rows, rows) == ["4 of 4 controls are not controls"]
        assert found(rows, other) == ["4 of 4 controls have a different cell type"]

    def test_genes_read_what_they_saved(self, tmp_path, genes):
        genes.save(tmp_path / "genes.npz")
        held = Genes.load(tmp_path / "genes.npz")
        assert held.names == genes.names
        assert (held.hvg == genes.hvg).all()
        assert (held.weights_of("hvg") == genes.weights[genes.hvg]).all()
