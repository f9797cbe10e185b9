"""Reading one configuration through the row of its family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simulator.specs.errors import MemroofError

ACTIVATIONS: Mapping[str, str] = {
    "gelu": "gelu", "gelu_new": "gelu", "gelu_fast": "gelu", "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "quick_gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu",
}  # fmt: skip
"""Names of activations in configurations, and what they cost as."""
_OPTIONAL = frozenset({"num_key_value_heads", "head_dim"})


class ConfigReader:
    """Reads keys of a configuration with a family's defaults, and remembers which keys were read."""

    def __init__(
        self, config: Mapping[str, Any], defaults: Mapping[str, Any], model_type: str, file: str
    ) -> None:
        self.config, self.defaults, self.model_type, self.file = config, defaults, model_type, file
        self.read: set[str] = set()

    def get(self, *keys: str) -> Any:
        """Return the first key that is present, else the default of the first; null counts as absent."""
        self.read.update(keys)
        found = next((self.config[key] for key in keys if self.config.get(key) is not None), None)
        return self.defaults.get(keys[0]) if found is None else found

    def whole(self, *keys: str) -> int:
        """Return a whole number; raises :class:`MemroofError` where it is missing or something else."""
        value = self._number(keys, self.get(*keys))
        if value is None:
            raise MemroofError(
                f"{self.file}: missing key {keys[0]!r}, which model_type {self.model_type!r} needs"
            )
        return value

    def optional(self, *keys: str) -> int | None:
        """Return a whole number, or None where the file says null, or nothing says anything."""
        value = self._number(keys, self.get(*keys))
        stated = [self.config[key] for key in keys if key in self.config]
        return None if stated and all(item is None for item in stated) else value

    def flag(self, key: str) -> bool:
        """Return true or false; false where neither the file nor the family says."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.fault(key, f"found {value!r}, expected true or false")
        return bool(value)

    def rate(self, key: str) -> float:
        """Return a number; zero where neither the file nor the family says."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
            raise self.fault(key, f"found {value!r}, expected a number")
        return float(value or 0.0)

    def listed(self, key: str) -> list[Any]:
        """Return a list; empty where neither the file nor the family says."""
        value = self.get(key)
        if value is not None and not isinstance(value, list):
            raise self.fault(key, f"found {value!r}, expected a list")
        return value or []

    def one_of(self, key: str, *accepted: Any) -> Any:
        """Return a value that must be among the accepted ones, or None where nothing says."""
        value = self.get(key)
        if value is not None and value not in accepted:
            raise self.fault(key, f"found {value!r}, expected {' or '.join(map(repr, accepted))}")
        return value

    def activation(self, key: str, value: Any = None) -> str:
        """Return the activation that a key (or ``value``, taken from it) names."""
        named = self.get(key) if value is None else value
        if named not in ACTIVATIONS:
            raise self.fault(key, f"found {named!r}, expected one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[named]

    def fault(self, key: str, message: str) -> MemroofError:
        """Return the error of a key."""
        return MemroofError(f"{self.file}: {key}: {message} (model_type {self.model_type!r})")

    def _number(self, keys: tuple[str, ...], value: Any) -> int | None:
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        key = next((key for key in keys if self.config.get(key) is not None), keys[0])
        raise self.fault(key, f"found {value!r}, expected a whole number")


Fields = dict[str, Any]
Rule = Callable[[ConfigReader], Fields]


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture of ``transformers``."""

    names: Mapping[str, tuple[str, ...]]
    """Field of the model, and the keys that give it: the first that is present counts."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """What the architecture fixes."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What the configuration class assumes for a key that is left out."""
    rules: tuple[Rule, ...] = ()
    """Fields that several keys decide together."""
    activation: str = "hidden_act"
    """Key of the activation; empty where a rule or the architecture gives it."""
    dropouts: tuple[str, ...] = ()
    """Keys of dropout rates: masks are kept if any is above zero."""
    part: str = ""
    """Key of the text part of a multimodal configuration."""
    ignored: frozenset[str] = frozenset()
    """Keys that look structural and are not."""

    def fields(self, reader: ConfigReader) -> Fields:
        """Return the fields that a configuration gives; raises :class:`MemroofError` for a bad key."""
        fields: Fields = dict(self.fixed)
        for name, keys in self.names.items():
            value = reader.optional(*keys) if name in _OPTIONAL else reader.whole(*keys)
            if value is not None:
                fields[name] = value
        fields["tie_word_embeddings"] = reader.flag("tie_word_embeddings")
        if self.activation:
            fields["activation"] = reader.activation(self.activation)
        fields["dropout"] = any(reader.rate(key) > 0 for key in self.dropouts)
        for rule in self.rules:
            fields.update(rule(reader))
        return fields
