"""Builds whose C functions cannot be called from kernels."""

import ctypes


def hide_native_functions(patch):
    """Read chunks through Python interfaces, without the warning; `patch` is a MonkeyPatch."""
    from lazypert.store import native

    patch.setattr(native, "FUNCTIONS", None)
    patch.setattr(native, "_has_warned", True)


def hide_symbol(symbol, patch):
    """Make every look-up of a symbol in a shared library fail, as where the library does not export it."""
    look_up = ctypes.CDLL.__getitem__

    def fail_for_symbol(library, name):
        if name == symbol:
            raise AttributeError(f"undefined symbol: {name}")
        return look_up(library, name)

    patch.setattr(ctypes.CDLL, "__getitem__", fail_for_symbol)
