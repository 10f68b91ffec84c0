"""Packages form layers: each imports only from those above it in `LAYERS`, and none has a cycle inside."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lazypert
import lazypert_converters

# One line per package or top-level module, in the order in which they may import one another. CONTRIBUTING.md and
# each package's README repeat these words.
LAYERS = {
    "errors": "every exception, in one tree",
    "progress": "progress events, and the bar that shows them",
    "_internal": "helpers that know nothing about screens: validation, memory, files, randomness, kernels, tasks",
    "sparse": "sparse matrices in memory: CSR blocks, row views, column selections, value statistics",
    "screen": "which cells a screen has: roles, groups, row ranges, labels, genes, targets (pure: no I/O)",
    "splits": "which cells train, validate and test: rules, values, reports (reads only through a given source)",
    "design": "arranging cells: control pools, sentences, experiment files (pure: no matrix is read)",
    "store": "the on-disk format and its readers: manifest, byte ranges, shards, chunk kernels, matrices, columns",
    "converter": "the protocol that a source format's reader implements",
    "csr": "the former home of CSRBlock, for third-party converters",
    "conversion": "source files to store: plan, external sort, spills, cell statistics, staging, writing",
    "updates": "adding cells, columns, embeddings and layers to a finished store, in one step",
    "sources": "screens as model input: one or more stores, perturbation features, conversion on first use",
    "quality": "on-target knockdown quality control",
    "analysis": "statistics of genes over all cells: aggregates per group, tests",
    "downsampling": "differentiable read downsampling in JAX",
    "loading": "epoch plan to batches: block reader, control cache, collation, prefetching, buffer pool",
    "pipeline_result": "what the pipeline sets up: splits, controls, loaders",
    "pipeline": "sources, quality control, splits, controls and loaders in one call",
    "run_manifest": "manifests of runs, and setting a run up again from its manifest",
    "dataset": "the xarray view: open, variables, backend, the ds.pert accessor",
    "simulate": "simulated screens with known ground truth",
    "plots": "figures of splits, knockdowns and downsampling",
    "_demo": "the demo: every component on one screen",
    "_cli": "the command line",
}

LEVEL = {name: number for number, name in enumerate(LAYERS)}
PACKAGE = Path(lazypert.__file__).parent
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def imports(path: Path) -> set[tuple[str, ...]]:
    """Modules of lazypert that a file imports, anywhere in it, as tuples of names; types aside."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lazypert":
            module = tuple(node.module.split(".")[1:])
            submodules = {(*module, alias.name) for alias in node.names if is_module((*module, alias.name))}
            found |= submodules or {module}
        elif isinstance(node, ast.Import):
            found |= {tuple(a.name.split(".")[1:]) for a in node.names if a.name.startswith("lazypert.")}
    return found - {()}


def is_module(names: tuple[str, ...]) -> bool:
    path = PACKAGE.joinpath(*names)
    return path.with_suffix(".py").is_file() or path.is_dir()


def wrong_imports(path: Path, own: str) -> list[str]:
    """What a file of package `own` imports from a package that is not above its own."""
    return sorted({names[0] for names in imports(path)} - {own} - {n for n in LAYERS if LEVEL[n] < LEVEL[own]})


def cycle_inside(folder: Path) -> list[str]:
    """Modules of a package that import one another in a circle, or nothing."""
    graph = {
        path.stem: {names[1] for names in imports(path) if names[0] == folder.name and len(names) > 1}
        for path in folder.glob("*.py")
        if path.stem != "__init__"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_module_has_a_layer():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert modules | set(PACKAGES) == set(LAYERS)


def test_the_top_level_is_short():
    assert len(list(PACKAGE.glob("*.py"))) <= 12


@pytest.mark.parametrize("name", LAYERS)
def test_imports_only_from_layers_above(name):
    single = PACKAGE / f"{name}.py"
    for path in [single] if single.exists() else sorted((PACKAGE / name).rglob("*.py")):
        assert wrong_imports(path, name) == [], f"{path.name} imports packages that are not above {name}"


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_have_no_cycle_inside(name):
    assert cycle_inside(PACKAGE / name) == []


def test_the_checks_find_what_they_look_for(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "one.py").write_text("from lazypert.store.two import a\nfrom lazypert.sparse import csr\n")
    (folder / "two.py").write_text("def f():\n    from lazypert.store import three\n")
    assert cycle_inside(folder) == []
    (folder / "three.py").write_text("import lazypert.store.one\nfrom lazypert.sources.base import b\n")
    assert wrong_imports(folder / "one.py", "store") == []
    assert wrong_imports(folder / "three.py", "store") == ["sources"]


def test_a_cycle_is_found(tmp_path):
    (tmp_path / "design").mkdir()
    (tmp_path / "design" / "one.py").write_text("from lazypert.design.two import a\n")
    (tmp_path / "design" / "two.py").write_text("def f():\n    from lazypert.design.one import b\n")
    assert set(cycle_inside(tmp_path / "design")) == {"one", "two"}


@pytest.mark.parametrize("name", PACKAGES)
def test_private_names_stay_in_their_package(name):
    for path in sorted((PACKAGE / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if module.startswith("lazypert.") and module.split(".")[1] != name:
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert private == [], f"{path.name} imports {private} from {module}"


@pytest.mark.parametrize("name", PACKAGES)
def test_each_package_has_a_short_readme_with_the_same_words(name):
    lines = (PACKAGE / name / "README.md").read_text().splitlines()
    assert len(lines) <= 12
    assert LAYERS[name] in " ".join(lines)


def test_contributing_lists_the_layers_in_order():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    listed = [line for line in text.splitlines() if line.startswith("| `")]
    expected = [f"| `{name}{'/' if name in PACKAGES else '.py'}` | {words} |" for name, words in LAYERS.items()]
    assert [line for line in listed if line in expected] == expected


def test_converters_import_only_what_a_third_party_would():
    for path in Path(lazypert_converters.__file__).parent.glob("*.py"):
        assert {names[0] for names in imports(path)} <= {"converter", "errors"}


def test_lazypert_never_imports_a_converter():
    for path in PACKAGE.rglob("*.py"):
        assert "import lazypert_converters" not in path.read_text(), path
        assert "from lazypert_converters" not in path.read_text(), path


def test_import_is_light():
    """Of the package, and of everything in it that is of use without these libraries."""
    heavy = ["jax", "matplotlib", "anndata", "h5py"]
    code = (
        "import sys, lazypert as lp, lazypert.plots, lazypert.simulate\n"
        "lp.convert, lp.LoaderConfig(layout='csr')\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
