"""lazypert against its rivals, measured by one command: ``python -m benchmarks``.

``benchmarks/README.md`` explains what is measured and how to read it. The modules, from the bottom up:

- `measure`: what one process used (time, memory, bytes), from the kernel's counters
- `machine`: the machine and the versions behind a report
- `processes`: runs in fresh processes, each with the interpreter that has the required packages
- `screens`: the screens to convert and to load, simulated once and reused
- `tables`, `chart`: what the reports and charts share

Conversion:

- `rivals`: one small function per rival, all with the same signature
- `_worker`: one measured run of one rival, in its own process
- `summary`: reduces many runs to one result per rival; pure
- `report`, `chart`: the results as tables and as a chart
- `convert`: the benchmark itself

Loading, likewise:

- `loaders`: one module per rival, and one for the limit
- `_load_worker`, `load_summary`, `load_report`, `load_chart`, `load`
- `fingerprints`: checks whether batches contain the cells that they should

Fairness:

- `fairness_settings`: null screens and loaders to measure, and the ranges of the results
- `fairness_statistics`: statistics of an epoch over a null screen; needs only NumPy
- `mixing`: groups in neighbouring batches, and cells that meet again in the next epoch
- `_fairness_worker`: an epoch of cell-load, in its own interpreter
- `fairness_report`, `fairness_chart`, `fairness`
"""
