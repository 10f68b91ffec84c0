"""The modules form layers: each imports only modules above it in this list."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lazypert

LAYERS = """
errors
options
memory files progress native buffers feed
schema
csr rows labels manifest features partial tasks readers
rng decoding
genes groups shards spill assembly
targets writer converter
facts columns reorder
plan
shuffle
ingest store
verify obs
dataset splits
backend controls qc
binomial experiment sampler annotations blocks
downsampling batches source
collate concat
loader
pipeline accessor
simulate plots
demo
cli
"""

LEVEL = {name: number for number, line in enumerate(LAYERS.strip().splitlines()) for name in line.split()}
PACKAGE = Path(lazypert.__file__).parent


def imports(path: Path) -> set[str]:
    """lazypert modules that a file imports, anywhere in it, types aside."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lazypert":
            rest = node.module.split(".")[1:]
            found |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lazypert.")}
    return found


def test_every_module_has_a_layer():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert modules | packages == set(LEVEL)


@pytest.mark.parametrize("name", LEVEL)
def test_imports_only_from_layers_above(name):
    single = PACKAGE / f"{name}.py"
    files = [single] if single.exists() else sorted((PACKAGE / name).glob("*.py"))
    for path in files:
        wrong = {other for other in imports(path) - {name} if LEVEL[other] >= LEVEL[name]}
        assert not wrong, f"{path.name} imports {sorted(wrong)}, which are not above it"


def test_converters_import_only_what_a_third_party_would():
    import lazypert_converters

    for path in Path(lazypert_converters.__file__).parent.glob("*.py"):
        assert imports(path) <= {"converter", "csr", "errors"}


def test_lazypert_never_imports_a_converter():
    for path in PACKAGE.rglob("*.py"):
        assert "lazypert_converters" not in path.read_text(), path


def test_import_is_light():
    heavy = ["jax", "matplotlib", "anndata", "h5py"]
    code = f"import sys, lazypert; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
