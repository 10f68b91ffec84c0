"""The demo: every component on one screen, with a report of what each of them found."""

from lazypert._demo.run import FIGURES, run_demo
from lazypert._demo.state import DemoConfig

__all__ = ["FIGURES", "DemoConfig", "run_demo"]
