"""lazypert against its peers, measured by one command: ``python -m benchmarks``.

What is measured, and how to read it, is in ``benchmarks/README.md``. The modules, from the bottom up:

- `measure`: what one process used (time, memory, bytes), from the counters of the kernel
- `machine`: where a report comes from
- `processes`: runs in fresh processes, in the interpreter that has what they need
- `screens`: the screens to convert and to load, made once and reused
- `tables`, `chart`: what the reports and pictures share

Conversion:

- `rivals`: one small function a rival, all of the same signature
- `_worker`: one measured run of one rival, in a process of its own
- `summary`: many runs to one line a rival; pure
- `report`, `chart`: the summary as JSON, as tables and as a picture
- `convert`: the benchmark itself, which joins these

Loading, likewise:

- `loaders`: a module for each tool, and one for the limit
- `_load_worker`, `load_summary`, `load_report`, `load_chart`, `load`
- `deliveries`: whether the batches hold what they should
"""
