"""Option checks with one wording for every error: ``name: got X, expected Y.``"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, get_args

from lazypert.errors import ConfigError, near_matches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from _typeshed import DataclassInstance

P = ParamSpec("P")
R = TypeVar("R")
ConfigT = TypeVar("ConfigT", bound="DataclassInstance")


def require(holds: bool, name: str, got: object, expected: str) -> None:
    """Raise `ConfigError` unless a condition holds."""
    if not holds:
        raise ConfigError(f"{name}: got {got!r}, expected {expected}.")


def require_integer(name: str, value: Any, least: int = 0) -> int:
    """Return an integer that is at least `least` as an int; NumPy integers are accepted."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    require(is_integer and value >= least, name, value, f"an integer, {least} or more")
    return int(value)


def require_number(
    name: str, value: Any, *, above: float | None = None, least: float | None = None, most: float | None = None
) -> float:
    """Return a finite number within bounds as a float; NumPy numbers are accepted."""
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("above", above), ("at least", least), ("at most", most))
        if bound is not None
    ]
    is_number = type(value) is not bool and isinstance(value, Real)
    holds = (
        is_number
        and math.isfinite(value)
        and (above is None or value > above)
        and (least is None or value >= least)
        and (most is None or value <= most)
    )
    require(bool(holds), name, value, f"a number {' and '.join(bounds)}".rstrip())
    return float(value)


def require_flag(name: str, value: Any) -> bool:
    """Return True or False as a bool; NumPy booleans are accepted."""
    is_numpy = getattr(value, "shape", None) == () and getattr(value, "dtype", None) == "bool"
    require(isinstance(value, bool) or is_numpy, name, value, "True or False")
    return bool(value)


def literal_choices(literal: Any) -> tuple[Any, ...]:
    """Return the values of a ``Literal``, or of ``Literal[...] | None``, in the order in which they are written.

    Examples
    --------
    >>> from typing import Literal
    >>> literal_choices(Literal["inner", "outer"] | None)
    ('inner', 'outer', None)
    """
    if literal is type(None):
        return (None,)
    arguments = get_args(literal)
    return tuple(
        choice for a in arguments for choice in (literal_choices(a) if get_args(a) or a is type(None) else [a])
    )


def require_choice(name: str, value: Any, choices: Any) -> None:
    """Require one of several values.

    Parameters
    ----------
    choices
        A sequence of strings, or a ``Literal`` type, so that the choices are stated only once.
    """
    known = choices if isinstance(choices, Sequence) else literal_choices(choices)
    if any(value is choice or (isinstance(value, str) and value == choice) for choice in known):
        return
    expected = " or ".join(map(repr, known)) if len(known) == 2 else f"one of {', '.join(map(repr, known))}"
    guess = near_matches(value, [text for text in known if text is not None]) if isinstance(value, str) else ""
    raise ConfigError(f"{name}: got {value!r}, expected {expected}. {guess if 'mean' in guess else ''}".rstrip())


def require_names(name: str, values: Any) -> list[str]:
    """Return a list of names; a single string is one name, and unordered collections are refused."""
    if isinstance(values, str):
        return [values]
    is_ordered = isinstance(values, Sequence) and not isinstance(values, bytes)
    is_ordered |= getattr(values, "ndim", 0) == 1  # arrays, Series and Index
    require(is_ordered, name, values, "a list of names, such as ['A', 'B']")
    for item in values:
        require(isinstance(item, str), name, item, "names only")
    return [str(item) for item in values]


def make_config(cls: type[ConfigT], options: Mapping[str, Any], *, also: Iterable[str] = ()) -> ConfigT:
    """Make a config dataclass from keyword options.

    Parameters
    ----------
    also
        Other options that the same call accepts. Near matches of a misspelt option are looked for among these too.

    Raises
    ------
    ConfigError
        If an option is unknown, or the config refuses a value.
    """
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    require_known(options, known, also=also)
    return cls(**options)


def require_known(options: Iterable[str], known: Sequence[str], *, also: Iterable[str] = ()) -> None:
    """Refuse names of options that are not known, with near matches among these and `also`."""
    for name in options:
        if name not in known:
            raise ConfigError(f"{name}: unknown option. {near_matches(name, [*known, *also])}")


def named_options(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function refuse unknown keyword arguments with a `ConfigError` that names near matches."""
    known = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        require_known(kwargs, known)
        return function(*args, **kwargs)

    return checked
