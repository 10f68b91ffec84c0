"""Running all sections of the demo, and drawing its figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lazypert._demo.data import convert_screen, describe_screen
from lazypert._demo.report import Report
from lazypert._demo.selection import build_sentences, filter_knockdown, match_controls, split
from lazypert._demo.state import Demo, DemoConfig
from lazypert._demo.training import downsample, load, run_experiment

if TYPE_CHECKING:
    from pathlib import Path

FIGURES = {"splits": "splits.png", "knockdown": "knockdown.png", "downsampling": "downsampling.png"}


def run_demo(config: DemoConfig) -> list[Path]:
    """Run every component on a screen, print a report and draw figures.

    Components that the screen does not support are skipped, and the report says why. Memory stays bounded:
    apart from tables with one value per cell, only blocks and a few thousand sampled cells are held.

    Returns
    -------
    Paths of the figures.
    """
    demo = Demo(config, Report())
    convert_screen(demo)
    describe_screen(demo)
    split(demo)
    filter_knockdown(demo)
    build_sentences(demo)
    match_controls(demo)
    downsample(demo)
    load(demo)
    run_experiment(demo)
    return _draw(demo)


def _draw(demo: Demo) -> list[Path]:
    """Draw the figures of all sections that were not skipped, and delete older figures of the others."""
    paths = []
    with demo.report.section("Figures"):
        for name, file in FIGURES.items():
            path = demo.config.out / file
            path.unlink(missing_ok=True)
            if name not in demo.figures:
                demo.report.skip(name, "see above")
                continue
            figure = demo.figures[name]()
            figure.savefig(path)
            paths.append(path)
            demo.report.line(name, path)
    return paths
