"""What a figure shows: its colours and its texts."""

from __future__ import annotations

import numpy as np


def n_colours(figure):
    """Number of different colours in the drawn figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return len(np.unique(np.ascontiguousarray(canvas.buffer_rgba()).view(np.uint32)))


def texts(figure):
    """All texts of a figure that are not empty."""
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]
