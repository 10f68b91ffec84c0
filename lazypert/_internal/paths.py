"""Paths as users write them: ``~``, variables and URLs.

This module needs only the standard library.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lazypert.errors import ConfigError

_LONGEST_NAME = 255  # bytes, in common file systems

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([^{}]*)\})", re.ASCII)

# What pathlib makes of a URL. One letter before the colon is a drive of Windows.
_SQUASHED_URL = re.compile(r"((?:\w[\w+.-]*::)*[A-Za-z][\w+.-]+):[/\\](?![/\\])", re.ASCII)


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is text with a URL, such as ``"s3://bucket/screen.zarr"`` or ``"simplecache::s3://..."``."""
    return isinstance(path, str) and "://" in path


def is_entry_name(name: str) -> bool:
    """Whether text can be the name of an array or group of a store, which is that of a folder.

    Examples
    --------
    >>> [is_entry_name(name) for name in ("X_pca", "a/b", "zarr.json", "n" * 256)]
    [True, False, False, False]
    """
    if name in ("", ".", "..", "zarr.json") or "/" in name or "\0" in name:
        return False
    try:
        return len(name.encode()) <= _LONGEST_NAME
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def location(name: str, path: str | os.PathLike[str]) -> str:
    """Return a local path or a URL with ``~`` and variables replaced, and with ``file://`` removed.

    Relative paths stay relative, and whatever has nothing to replace stays as it is.

    Parameters
    ----------
    name
        The option that holds the path, for error messages.
    path
        ``$NAME`` and ``${NAME}`` are environment variables. A dollar sign of a file's own name stays if there is no
        such variable but there is such a file. URLs must be text.

    Raises
    ------
    ConfigError
        If it is not a path, a variable or the home folder is not known, or it is a URL that pathlib has changed.

    Examples
    --------
    >>> import os
    >>> os.environ["SCREENS"] = "/data"
    >>> location("store", "${SCREENS}/k562.zarr"), location("store", "file:///data/rpe1.zarr")
    ('/data/k562.zarr', '/data/rpe1.zarr')
    """
    given: object = path
    text = os.fsdecode(path) if isinstance(given, str | os.PathLike) else ""
    if not text or "\0" in text:
        raise ConfigError(f"{name}: got {path!r}, expected a path.")
    if squashed := _SQUASHED_URL.match(text):
        url = f"{squashed[1]}://{text[squashed.end() :]}"
        raise ConfigError(
            f"{name}: got {path!r}, expected a path or a URL. A pathlib.Path cannot hold a URL: pass the text {url!r}. "
            "If it is a local folder with a colon in its name, pass its absolute path."
        )
    if not is_url(text):
        return _with_variables(name, _with_home(name, text))
    address, question_mark, query = text.partition("?")
    return _without_file_scheme(name, _with_variables(name, address) + question_mark + query)


def local_path(name: str, path: str | os.PathLike[str], cure: str) -> Path:
    """Return a local path with ``~`` and variables replaced; `location` says how.

    Parameters
    ----------
    cure
        What to do instead of passing a URL: whole sentences.

    Raises
    ------
    ConfigError
        If it is a URL other than ``file://``, or `location` refuses it.
    """
    found = location(name, path)
    if is_url(found):
        raise ConfigError(f"{name}: got the URL {found!r}, expected a local path. {cure}")
    return Path(found)


def _with_home(name: str, text: str) -> str:
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser raises RuntimeError
    if not expanded.startswith("~"):
        return expanded
    user = re.split(r"[/\\]", text, maxsplit=1)[0]
    if Path(user).exists():
        return text
    raise ConfigError(
        f"{name}: got {text!r}, but there is no home folder of {user!r}. Correct the name; if the file's own name "
        "begins with '~', pass its absolute path."
    )


def _with_variables(name: str, text: str) -> str:
    def value(found: re.Match[str]) -> str:
        variable = found[1] or found[2]
        known = os.environ.get(variable)
        if known:
            return known
        end = re.compile(r"[/\\]|$").search(text, found.end())
        if not is_url(text) and end is not None and Path(text[: end.start()]).exists():
            return found[0]
        state = "is not set" if known is None else "is empty"
        raise ConfigError(
            f"{name}: got {text!r}, but the environment variable {variable!r} {state}. Set it, or write out the path."
        )

    return _VARIABLE.sub(value, text)


def _without_file_scheme(name: str, url: str) -> str:
    scheme, _, rest = url.partition("://")
    if scheme.lower() != "file" or "::" in url:
        return url
    host = urlsplit(url).netloc
    if host not in ("", "localhost") or not rest.removeprefix(host):
        raise ConfigError(
            f"{name}: got {url!r}, expected a file:// URL of this machine. Write it with three slashes, such as "
            "'file:///data/screen.zarr'."
        )
    path = rest.removeprefix(host)
    if os.name == "nt":
        path = path.removeprefix("/")
    # Many tools put file:// before a path without encoding it.
    return path if Path(path).exists() else unquote(path)


def shown_url(url: str) -> str:
    """Return a URL without what may be secret: a password, and its query, which may be a signature."""
    address = url.partition("?")[0]
    return re.sub(r"(://)[^/@\s]+:[^/@\s]*@", r"\1", address)


def require_plain_url(name: str, url: str) -> str:
    """Return a URL after checking that it holds no password or signature, which errors and attributes would show.

    Raises
    ------
    ConfigError
        If it does.
    """
    if (shown := shown_url(url)) != url:
        raise ConfigError(
            f"{name}: got the URL {shown!r} with a password or a query in it, expected one without. Pass credentials "
            "as storage_options, which are never shown: see the page on object storage."
        )
    return url
