"""Arguments and output of the command line."""

ROLES = ("--pert-col", "perturbation", "--control-pert", "non-targeting")
ALL_ROLES = (*ROLES, "--cell-type-col", "cell_type", "--batch-col", "batch")


def fields(text):
    """Return the first value of each ``name   value`` line."""
    out = {}
    for line in text.splitlines():
        name, _, value = line.partition("  ")
        out.setdefault(name, value.strip())
    return out
