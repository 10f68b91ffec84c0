"""Fresh processes: one measured run each, with the interpreter that has the required packages."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.machine import ROOT

# Prints which modules are absent, and the versions of packages; also runs in interpreters without lazypert.
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
    """The process of a rival failed; the message is the last line of its stderr."""


def run_worker(module: str, *arguments: str, python: str = sys.executable) -> dict[str, Any]:
    """Run ``python -m module arguments`` and return the JSON object on its last line of output."""
    return _last_json([python, "-m", module, *arguments])


def probe(python: str, modules: tuple[str, ...], packages: tuple[str, ...]) -> dict[str, Any]:
    """Return which modules an interpreter lacks (``absent``), its version, and the versions of packages."""
    return _last_json([python, "-c", _PROBE, json.dumps([modules, packages])])


def _last_json(command: list[str]) -> dict[str, Any]:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RunFailedError(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no error message"]
        raise RunFailedError(f"exit status {done.returncode}: {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def log(text: str) -> None:
    """Print a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)
