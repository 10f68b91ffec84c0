import jax
import pytest


@pytest.fixture(autouse=True, scope="package")
def _quick_compilation():
    # Most of the time here goes into compiling; the results do not depend on it.
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def _strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield
