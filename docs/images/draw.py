"""Draw the pictures for docs/architecture.md: ``python docs/images/draw.py [folder]``.

Colours follow the viewer's light or dark theme. The background is part of the picture, so that it can be
read on a page with either theme.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

WIDTH, TITLE, LINE = 1120, 15, 12.5

STYLE = """
  :root { --back: #ffffff; --ink: #1f2328; --soft: #57606a; --lane: #f3f5f8; --edge: #c5cdd6;
          --disk: #dbeafe; --disk-edge: #3b82c4; --work: #fde9c8; --work-edge: #c27c0e;
          --held: #d9f2e0; --held-edge: #2e9e5b; --arrow: #57606a; }
  @media (prefers-color-scheme: dark) {
    :root { --back: #0d1117; --ink: #e6edf3; --soft: #a3adb8; --lane: #161b22; --edge: #3d4650;
            --disk: #12304f; --disk-edge: #58a6ff; --work: #40300f; --work-edge: #e3a53a;
            --held: #123524; --held-edge: #4cc37b; --arrow: #a3adb8; }
  }
  text { font-family: system-ui, "Segoe UI", "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; fill: var(--ink); }
  .soft { fill: var(--soft); }
  .back { fill: var(--back); }
  .lane { fill: var(--lane); stroke: var(--edge); }
  .disk { fill: var(--disk); stroke: var(--disk-edge); }
  .work { fill: var(--work); stroke: var(--work-edge); }
  .held { fill: var(--held); stroke: var(--held-edge); }
  .arrow { stroke: var(--arrow); fill: none; stroke-width: 1.8; marker-end: url(#head); }
  .head { fill: var(--arrow); }
"""


class Picture:
    """Boxes and arrows on lanes; coordinates are pixels from the upper left corner."""

    def __init__(self, title: str, description: str, height: int) -> None:
        self.height = height
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
            f"<title>{escape(title)}</title><desc>{escape(description)}</desc>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            'orient="auto-start-reverse"><path class="head" d="M0 0L10 5L0 10z"/></marker></defs>',
            f'<rect class="back" width="{WIDTH}" height="{height}" rx="10"/>',
        ]

    def text(self, x: float, y: float, words: str, size: float, *, style: str = "", anchor: str = "start") -> None:
        """Write one line; its baseline is at `y`."""
        weight = ' font-weight="600"' if style == "bold" else ""
        kind = ' class="soft"' if style == "soft" else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"{weight}{kind}>'
            f"{escape(words)}</text>"
        )

    def lane(self, y: float, height: float, name: str) -> None:
        """Draw a band across the picture, with its name on the left."""
        self.parts.append(f'<rect class="lane" x="12" y="{y}" width="{WIDTH - 24}" height="{height}" rx="8"/>')
        for number, word in enumerate(name.split("\n")):
            self.text(24, y + 24 + 17 * number, word, 13, style="bold" if number == 0 else "soft")

    def box(self, x: float, y: float, width: float, height: float, kind: str, title: str, *lines: str) -> None:
        """Draw a box with a title and some lines."""
        self.parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="7"/>')
        self.text(x + width / 2, y + 21, title, TITLE, style="bold", anchor="middle")
        for number, words in enumerate(lines):
            self.text(x + width / 2, y + 41 + 17 * number, words, LINE, anchor="middle")

    def arrow(self, *points: tuple[float, float]) -> None:
        """Draw an arrow through the given points."""
        path = "L".join(f"{x:g} {y:g}" for x, y in points)
        self.parts.append(f'<path class="arrow" d="M{path}"/>')

    def svg(self) -> str:
        """Return the whole picture."""
        return "\n".join([*self.parts, "</svg>", ""])


def conversion() -> Picture:
    """Draw a source file becoming a store."""
    picture = Picture(
        "Conversion",
        "Map tasks read blocks of the source file and write sorted spills; reduce tasks gather the rows of one shard "
        "from all spills; finalising writes the manifest and renames the staging directory to the store.",
        556,
    )
    picture.text(24, 34, "Conversion: an external sort from source files to one store", 19, style="bold")
    picture.lane(52, 128, "Disk")
    picture.lane(192, 152, "Tasks\nin threads, or on\na Dask cluster")
    picture.lane(356, 92, "Memory\ntogether within\nmemory_limit")
    picture.lane(460, 84, "Kept on disk\nfor resuming")

    picture.box(150, 68, 200, 96, "disk", "Source files", ".h5ad, AnnData .zarr,", "10x .h5, mtx", "cells in any order")
    picture.box(422, 68, 200, 96, "disk", "Spills", "one file per source block,", "rows sorted by", "destination")
    picture.box(
        660,
        68,
        200,
        96,
        "disk",
        "Shards",
        "of data and indices,",
        "8,388,608 values each,",
        "in the order of the store",
    )
    picture.box(898, 68, 198, 96, "disk", "Store", "screen.zarr:", "complete, or not", "there at all")

    picture.box(
        150,
        208,
        170,
        120,
        "work",
        "Plan",
        "calling thread",
        "labels: runs, shuffled;",
        "destination of each",
        "row; memory, disk",
    )
    picture.box(
        346,
        208,
        200,
        120,
        "work",
        "Map tasks",
        "read a block, check it,",
        "sort its rows by destination,",
        "collect value statistics,",
        "write a spill",
    )
    picture.box(
        572,
        208,
        218,
        120,
        "work",
        "Reduce tasks",
        "gather the rows of one",
        "shard from all spills, collect",
        "cell statistics, compress,",
        "write the shard",
    )
    picture.box(
        816,
        208,
        280,
        120,
        "work",
        "Write tables, finalise",
        "calling thread",
        "obs and embeddings in pieces;",
        "manifest; root metadata last;",
        "flush to disk; rename",
    )

    picture.box(150, 370, 170, 64, "held", "64 bytes per cell", "codes, keys, row orders")
    picture.box(346, 370, 200, 64, "held", "4 x block, per task", "block of up to 64 MiB")
    picture.box(572, 370, 218, 64, "held", "160 MiB per task", "one shard, gathered")
    picture.box(816, 370, 280, 64, "held", "One piece of one column", "or 1/8 of memory_limit of an embedding")

    picture.box(346, 474, 200, 56, "disk", "Checkpoint per spill", "size and CRC-32")
    picture.box(572, 474, 218, 56, "disk", "Checkpoint per shard", "size and CRC-32 of its files")
    picture.text(816, 497, "staging directory <store>.partial-<id>:", LINE)
    picture.text(816, 515, "its folder store/ becomes the store", LINE)

    picture.arrow((235, 164), (235, 206))
    picture.arrow((335, 164), (380, 206))
    picture.arrow((320, 268), (344, 268))
    picture.arrow((480, 208), (505, 166))
    picture.arrow((575, 164), (620, 206))
    picture.arrow((720, 208), (745, 166))
    picture.arrow((835, 164), (870, 206))
    picture.arrow((965, 208), (990, 166))
    return picture


def loading() -> Picture:
    """Draw a store becoming batches."""
    picture = Picture(
        "Loading",
        "Tables of the store give the plan of an epoch; reader threads read blocks of cells and their controls; "
        "collate threads make batches from them ahead of the caller; memory of released batches is reused.",
        612,
    )
    picture.text(24, 34, "Loading: from a store to batches on the device, ahead of the caller", 19, style="bold")
    picture.lane(52, 110, "Disk or\nobject storage")
    picture.lane(174, 168, "Threads\nrelease the GIL\nmost of the time")
    picture.lane(354, 128, "Memory\nwithin\nmemory_limit,\n512 MiB")
    picture.lane(494, 106, "Cached\nacross batches")

    picture.box(150, 66, 210, 82, "disk", "Tables of the store", "runs and labels of", "obs/__lazypert__")
    picture.box(396, 66, 240, 82, "disk", "Shards of X", "chunks of 65,536 values,", "some twenty cells each")

    picture.box(
        150,
        190,
        210,
        136,
        "work",
        "Epoch plan",
        "calling thread, no matrix",
        "splits, pools, sentences:",
        "what block number n holds",
        "is a function of seed,",
        "epoch, host and n",
    )
    picture.box(
        396,
        190,
        240,
        136,
        "work",
        "Reader threads",
        "min(8, CPUs + 1)",
        "coalesce byte ranges, read,",
        "verify, decode wanted rows and",
        "genes of one block: cells,",
        "matched controls, obs columns",
    )
    picture.box(
        672,
        190,
        214,
        136,
        "work",
        "Collate threads",
        "up to prefetch + 1",
        "one batch: thin reads,",
        "normalise; dense or padded",
        "sparse rows; put on",
        "the device",
    )
    picture.box(
        922,
        190,
        174,
        136,
        "work",
        "Caller",
        "for batch in loader:",
        "a model's step",
        "",
        "state_dict(): epoch",
        "and next batch",
    )

    picture.box(
        150,
        368,
        210,
        100,
        "held",
        "Run table",
        "32 bytes per run, none",
        "per cell in a grouped store;",
        "outside memory_limit",
    )
    picture.box(
        396,
        368,
        240,
        100,
        "held",
        "Blocks",
        "60 %: 2 to threads + 1 blocks",
        "of shuffle_size cells,",
        "as compact as stored",
    )
    picture.box(
        672,
        368,
        214,
        100,
        "held",
        "Finished batches",
        "40 %: up to prefetch (2),",
        "yielded in order, whichever",
        "thread made them",
    )
    picture.box(922, 368, 174, 100, "held", "Batch in use", "arrays of fixed shape,", "so jit compiles once")

    picture.box(150, 508, 210, 78, "held", "Shard indexes", "where chunks lie: the last", "4,096 shards of each array")
    picture.box(
        396, 508, 240, 78, "held", "Control cache", "35 % of memory_limit, before", "the shares above; 16 at a time"
    )
    picture.box(
        672,
        508,
        424,
        78,
        "held",
        "Buffer pool",
        "memory of blocks and batches, reused as soon as",
        "no array refers to it",
    )

    picture.arrow((255, 148), (255, 188))
    picture.arrow((516, 148), (516, 188))
    picture.arrow((360, 258), (394, 258))
    picture.arrow((516, 326), (516, 366))
    picture.arrow((636, 400), (655, 400), (655, 258), (670, 258))
    picture.arrow((779, 326), (779, 366))
    picture.arrow((886, 400), (905, 400), (905, 258), (920, 258))
    picture.arrow((1009, 326), (1009, 366))
    picture.arrow((1009, 468), (1009, 506))
    picture.arrow((516, 508), (516, 470))
    picture.arrow((672, 547), (654, 547), (654, 440), (638, 440))
    return picture


def main(folder: Path) -> None:
    """Write both pictures."""
    for draw in (conversion, loading):
        (folder / f"{draw.__name__}.svg").write_text(draw().svg())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
