"""lazypert against its peers, measured by one command: ``python -m benchmarks``.

What is measured, and how to read it, is in ``benchmarks/README.md``. The modules, from the bottom up:

- `measure`: what one process used (time, memory, bytes), from the counters of the kernel
- `screens`: the screens to convert, made once and reused
- `rivals`: one small function a rival, all of the same signature
- `_worker`: one measured run of one rival, in a process of its own
- `summary`: many runs to one line a rival; pure
- `report`, `chart`: the summary as JSON, as tables and as a picture
- `convert`: the benchmark itself, which joins these
"""
