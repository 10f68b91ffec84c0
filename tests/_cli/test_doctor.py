import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import lazypert
from lazypert._cli import doctor, main


def report(capsys):
    """Run the doctor; return the fields of each section, and the advice."""
    assert main(["doctor"]) == 0
    sections = {}
    for paragraph in capsys.readouterr().out.split("\n\n"):
        title, *lines = paragraph.splitlines()
        sections[title] = [line.strip() for line in lines]
    advice = sections.pop("What to do")
    fields = {title: dict(line.split(maxsplit=1) for line in lines) for title, lines in sections.items()}
    return fields, " ".join(advice)


def test_versions_are_those_of_the_installed_packages(capsys):
    versions = report(capsys)[0]["Versions"]
    assert versions["lazypert"] == lazypert.__version__
    assert versions["numpy"] == metadata.version("numpy")
    assert {"Python", "zarr", "dask", "xarray", "anndata", "jax", "numba", "google-crc32c"} <= set(versions)


def test_every_optional_package_is_listed_under_its_extra():
    project = tomllib.loads((Path(lazypert.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = {name: packages[0].partition(">")[0] for name, packages in project["optional-dependencies"].items()}
    for name, (package, _) in doctor.EXTRAS.items():
        assert extras[name] == package
    assert set(extras) - set(doctor.EXTRAS) == {"test", "bench", "integration", "dev"}


def test_resources_and_compiled_code_are_described(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "cpu_count", lambda: 1)
    monkeypatch.setattr(doctor, "default_threads", lambda: 1)
    monkeypatch.setattr(doctor, "machine_memory", lambda: 16 * 1024**3)
    fields, advice = report(capsys)
    assert fields["Resources"]["processors"].startswith("1 usable of ")
    assert fields["Resources"]["loader"] == "threads         1 by default"
    assert fields["Resources"]["memory"] == "16.0 GiB"
    assert "device" in fields["Resources"]["JAX"]
    assert fields["Compiled code"]["pread"] == "found"
    assert "memory_limit" not in advice


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("cache_directory", lambda: None, "no writable directory", "Set NUMBA_CACHE_DIR"),
        ("_codecs", lambda: {"crc32c_value": "missing (no symbol)"}, "missing (no symbol)", "crc32c_value missing"),
        ("_devices", lambda: "not usable (no jaxlib)", "not usable (no jaxlib)", "Loaders and downsampling need JAX"),
        ("machine_memory", lambda: 2 * 1024**3, "2.0 GiB", "Pass memory_limit"),
        ("EXTRAS", {"plot": ("no-such-package", "draw figures")}, "missing", "pip install 'lazypert[plot]'"),
    ],
    ids=["cache", "codecs", "JAX", "memory", "extra"],
)
def test_advice_follows_from_what_is_slow_or_missing(capsys, monkeypatch, name, value, field, expected):
    monkeypatch.setattr(doctor, name, value)
    fields, advice = report(capsys)
    assert field in " ".join(text for section in fields.values() for text in section.values())
    assert expected in advice


def test_no_advice_is_given_when_nothing_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {})
    monkeypatch.setattr(doctor, "_advice", lambda *_: [])
    assert report(capsys)[1] == "Nothing: everything was found."


def test_jax_that_cannot_be_imported_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    assert doctor._devices().startswith("not usable (")
