"""Code blocks of the documents run and print the output shown after them; links and anchors resolve.

Run as a script to write the output of every block into the documents.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
SLOW = ("quality-control.md", "leaks.md", "clusters.md")  # several seconds each
SET_UP = ("Try it", "Test it")  # .ci/run runs these

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


class CodeBlock(NamedTuple):
    language: str
    code: str
    line: int
    heading: str
    shown: str | None
    """The text block that follows directly, if there is one; ``...`` in its last line stands for more output."""


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(text):
    """Return the fenced blocks of a document, except those that show output."""
    found, matches = [], list(FENCE.finditer(text))
    for match, after in zip(matches, [*matches[1:], None], strict=False):
        if match[1] == "text":
            continue
        follows = after is not None and after[1] == "text" and not text[match.end() : after.start()].strip()
        heading = re.findall(r"^#+ (.+)$", text[: match.start()], re.MULTILINE)[-1]
        line = text.count("\n", 0, match.start()) + 1
        found.append(CodeBlock(match[1], match[2], line, heading, after[2] if follows else None))
    return found


def outputs(path, text, folder):
    """Run the Python blocks of a document, and the shell blocks of the README, in one folder and in order."""
    namespace = {"__name__": "__main__"}
    for block in blocks(text):
        printed = io.StringIO()
        if block.language == "python":
            code = compile("\n" * block.line + block.code, str(path), "exec")
            with contextlib.redirect_stdout(printed), contextlib.chdir(folder):
                exec(code, namespace)
        elif block.language == "bash" and path.name == "README.md" and path.parent == ROOT:
            if block.heading in SET_UP:
                continue
            search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.code],
                cwd=folder,
                env={**os.environ, "PATH": search},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{path}:{block.line}\n{done.stderr}"
            printed.write(done.stdout)
        yield block, printed.getvalue()


def as_shown(printed, shown):
    """Shorten an output to the lines that a document shows."""
    printed, shown = tidy(printed), tidy(shown)
    if not shown.endswith("..."):
        return printed
    return "\n".join([*printed.splitlines()[: len(shown.splitlines()) - 1], "..."])


def tidy(text):
    """Remove trailing spaces, as editors do, and leading and trailing empty lines."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


RUN = [pytest.param(path, marks=[pytest.mark.slow] * (path.name in SLOW)) for path in DOCUMENTS]


@pytest.mark.parametrize("path", RUN, ids=name_of)
def test_code_blocks_run_and_print_what_is_shown(path, tmp_path):
    n_python = 0
    for block, printed in outputs(path, path.read_text(), tmp_path):
        n_python += block.language == "python"
        if block.shown is not None:
            assert as_shown(printed, block.shown) == tidy(block.shown), f"{name_of(path)}, line {block.line}"
        elif block.language == "python":
            assert printed == "", f"{name_of(path)}, line {block.line}: prints, and shows no output"
    assert n_python >= {"README.md": 9, "docs/architecture.md": 1, "docs/store-format.md": 2}.get(name_of(path), 0)


def anchors(text):
    """Return the anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h)).lower() for h in headings]
    return {word.replace(" ", "-") for word in words}


def broken_links(path, text):
    """Return the relative links of a document that do not resolve."""
    broken = []
    for link in LINK.findall(FENCE.sub("", text)):
        target, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        there = path.parent / target if target else path
        if not there.exists() or (anchor and anchor not in anchors(text if there == path else there.read_text())):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", [*DOCUMENTS, *sorted((ROOT / "lazypert").glob("*/README.md"))], ids=name_of)
def test_links_resolve(path):
    assert broken_links(path, path.read_text()) == []


def test_broken_links_are_found():
    text = "# One\n[a](README.md) [b](nowhere.md) [c](#one) [d](#two) [e](docs/glossary.md#Cells) [f](https://x.org)"
    assert broken_links(ROOT / "README.md", text) == ["nowhere.md", "#two", "docs/glossary.md#Cells"]


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(LINK.findall(index))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_documents_name_no_machine_paths(path):
    assert re.findall(r"(?<![\w.])/(?:home|Users|root|tmp|work|mnt)\b[^\s)]*", path.read_text()) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_modules_named_in_documents_exist(path):
    named = re.findall(r"`(?:lazypert/)?((?:\w+/)*\w+\.py)`", path.read_text())
    folders = [ROOT, ROOT / "lazypert", ROOT / "converters" / "lazypert_converters", ROOT / "tests"]
    assert [name for name in named if not any((folder / name).exists() for folder in folders)] == []


def test_pictures_match_the_script(tmp_path):
    images = ROOT / "docs" / "images"
    subprocess.run([sys.executable, images / "draw.py", tmp_path], check=True)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_text() for path in images.glob("*.svg")}
    assert len(drawn) == 2


if __name__ == "__main__":
    import tempfile

    for document in DOCUMENTS:
        words = document.read_text()
        with tempfile.TemporaryDirectory() as name:
            for block, printed in outputs(document, words, Path(name)):
                if block.shown is not None:
                    old = f"```{block.language}\n{block.code}```\n\n```text\n{block.shown}```"
                    new = f"```{block.language}\n{block.code}```\n\n```text\n{as_shown(printed, block.shown)}\n```"
                    words = words.replace(old, new)
        document.write_text(words)
