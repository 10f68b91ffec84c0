"""lazypert: a lazy out-of-core engine for perturbation screens."""
