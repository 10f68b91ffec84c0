"""The benchmark of reading through a server, on a screen of a few hundred cells."""

import json

import pytest

pytest.importorskip("obstore")


def test_each_operation_is_measured(tmp_path):
    from benchmarks import remote

    options = remote.Options(cells=600, genes=300, nnz=60, latency=0.0, work=tmp_path)
    report = remote.run(options)
    assert report == json.loads((tmp_path / "remote.json").read_text())
    assert report["disagreements"] == []
    rows = {row["name"]: row for row in report["rows"]}
    assert 2 <= rows["open"]["requests"] <= 8
    assert rows["table of a selection"]["requests"] == 0
    assert rows["epoch"]["cells"] == rows["epoch, local"]["cells"] > 400
    assert rows["epoch, warm cache"]["bytes"] < rows["epoch, empty cache"]["bytes"]
    assert rows["epoch, local"]["requests"] == 0
    assert (tmp_path / "remote.md").read_text().count("\n") == len(rows) + 2
