"""The command doctor: the state of the installation, and what to do about anything slow or missing."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from lazypert._internal.kernels import cache_directory
from lazypert._internal.memory import cpu_count, default_threads, format_bytes, machine_memory

if TYPE_CHECKING:
    import argparse

EXTRAS = {
    "plot": ("matplotlib", "draw figures"),
    "distributed": ("distributed", "convert on a Dask cluster"),
    "hdf5": ("hdf5plugin", "read H5AD files compressed with Blosc, LZ4 or Zstandard"),
    "parquet": ("pyarrow", "read and write splits as Parquet files"),
    "remote": ("obstore", "read stores from object storage"),
    "s3": ("s3fs", "read stores from S3 with profiles and other options of fsspec"),
}
"""Package and purpose of each optional dependency of lazypert, by the name of the extra."""

_SMALL_MEMORY = 4 * 1024**3
_MISSING = "missing"


def print_diagnosis(options: argparse.Namespace) -> None:  # noqa: ARG001 - the signature of a command
    """Print versions, resources, compiled code and optional packages, then advice."""
    codecs, cache, extras, devices = _codecs(), cache_directory(), _extras(), _devices()
    advice = _advice(codecs, cache, devices) + [hint for _, hint in extras.values() if hint]
    sections = [
        _section("Versions", {"lazypert": _version("lazypert"), "Python": _python(), **_versions()}),
        _section("Resources", _resources(devices)),
        _section("Compiled code", {"Numba cache": cache or "no writable directory", **codecs}),
        _section("Optional packages", {name: status for name, (status, _) in extras.items()}),
        "\n".join(["What to do", *([f"  - {line}" for line in advice] or ["  Nothing: everything was found."])]),
    ]
    print("\n\n".join(sections))


def _section(title: str, fields: dict[str, str]) -> str:
    return "\n".join([title, *(f"  {name:<22} {value}" for name, value in fields.items())])


def _resources(devices: str) -> dict[str, str]:
    return {
        "processors": f"{cpu_count()} usable of {os.cpu_count()}",
        "loader threads": f"{default_threads()} by default",
        "memory": format_bytes(machine_memory()),
        "JAX": devices,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return _MISSING


def _versions() -> dict[str, str]:
    required = [re.split(r"[^\w.-]", text)[0] for text in metadata.requires("lazypert") or () if "extra ==" not in text]
    return {package: _version(package) for package in sorted(required)}


def _python() -> str:
    return f"{platform.python_version()} ({platform.system()}, {platform.machine()})"


def _codecs() -> dict[str, str]:
    from lazypert.store import native

    return native.describe()


def _extras() -> dict[str, tuple[str, str]]:
    """Return the status of each optional package, and advice if it is missing."""
    out = {}
    for extra, (package, purpose) in EXTRAS.items():
        version = _version(package)
        hint = f"To {purpose}: pip install 'lazypert[{extra}]'" if version == _MISSING else ""
        out[package] = (version, hint)
    return out


def _devices() -> str:
    """Return the platform that JAX computes on, or why JAX cannot be imported."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave the GPU's memory to running jobs
    try:
        import jax

        return f"{jax.device_count()} {jax.default_backend()} device{'s' * (jax.device_count() != 1)}"
    except (ImportError, RuntimeError) as error:
        return f"not usable ({error})"


def _advice(codecs: dict[str, str], cache: str | None, devices: str) -> list[str]:
    """Return advice on whatever is slow in this installation."""
    advice = []
    if absent := [f"{name} {status}" for name, status in codecs.items() if status != "found"]:
        advice.append(
            f"Stores load more slowly, because kernels cannot call C functions: {'; '.join(absent)}. "
            "Install numcodecs and google-crc32c from their binary wheels."
        )
    if cache is None:
        advice.append("Each process compiles its kernels again. Set NUMBA_CACHE_DIR to a writable directory.")
    if devices.startswith("not usable"):
        advice.append("Loaders and downsampling need JAX. See https://docs.jax.dev/en/latest/installation.html")
    elif devices.endswith(("cpu device", "cpu devices")) and Path("/dev/nvidia0").exists():
        advice.append("JAX does not use the GPU of this machine: pip install 'jax[cuda12]'")
    if machine_memory() < _SMALL_MEMORY:
        advice.append(
            "This machine has little memory. Pass memory_limit to convert and to loaders, at most half of it."
        )
    return advice
