"""Configs: frozen dataclasses with a short repr, which can be derived from one another."""

from __future__ import annotations

import dataclasses
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from lazypert._internal.validation import require_known

if TYPE_CHECKING:
    from typing import Self


SECRET = {"secret": True}
"""Metadata of fields that may hold credentials, which no repr shows."""


class Config:
    """Base of the configs, which are dataclasses declared with ``frozen=True, kw_only=True, repr=False``.

    Configs that share fields inherit them from a common base. The repr shows only the fields whose
    values differ from their defaults.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __new__(cls, *_args: Any, **options: Any) -> Self:
        """Refuse unknown options with near matches; the generated ``__init__`` does the rest."""
        require_known(options, [field.name for field in fields(cls) if field.init])
        return super().__new__(cls)

    def __repr__(self) -> str:
        values = {field: getattr(self, field.name) for field in fields(self) if field.repr}
        changed = [f"{field.name}={_shown(field, value)}" for field, value in values.items() if value != field.default]
        return f"{type(self).__name__}({', '.join(changed)})"


def _shown(field: dataclasses.Field[Any], value: Any) -> str:
    return "{...}" if field.metadata.get("secret") else repr(value)


ConfigType = TypeVar("ConfigType", bound=Config)


def derive(kind: type[ConfigType], config: Config, **values: Any) -> ConfigType:
    """Make a config of another kind from the fields that both kinds have.

    Parameters
    ----------
    kind
        Class of the new config.
    config
        Where the values of shared fields come from; other fields get their defaults.
    **values
        Values that override them.
    """
    own = {field.name for field in fields(config)}
    shared = {field.name: getattr(config, field.name) for field in fields(kind) if field.name in own}
    return kind(**shared | values)
