"""Runs in fresh processes: one measured run each, in the interpreter that has what it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.machine import ROOT

# What is missing of the modules, and the versions of the packages; runs in interpreters without lazypert.
_PROBE = """
import importlib.metadata, importlib.util, json, platform, sys
modules, packages = json.loads(sys.argv[1])
def version(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return None
absent = [name for name in modules if importlib.util.find_spec(name) is None]
print(json.dumps({"absent": absent, "python": platform.python_version(), **{name: version(name) for name in packages}}))
"""


class RunFailedError(RuntimeError):
    """A rival's process came to nothing; the message is the last line of what it said."""


def run_worker(module: str, *arguments: str, python: str = sys.executable) -> dict[str, Any]:
    """Run ``python -m module arguments``, and return the JSON object on its last line."""
    return _answer([python, "-m", module, *arguments])


def probe(python: str, modules: tuple[str, ...], packages: tuple[str, ...]) -> dict[str, Any]:
    """Return which modules an interpreter lacks (``absent``), its version, and those of packages."""
    return _answer([python, "-c", _PROBE, json.dumps([modules, packages])])


def _answer(command: list[str]) -> dict[str, Any]:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RunFailedError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise RunFailedError(f"exit status {done.returncode}: {said[-1]}")
    return json.loads(done.stdout.splitlines()[-1])
