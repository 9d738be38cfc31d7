"""Dataclasses from TOML, strictly: an unknown key is an error with the nearest known name, a wrong type one too."""

import dataclasses
import difflib
import tomllib
import types
import typing
from typing import Any, Literal

WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def from_dict(kind: type, raw: Any, where: str = "") -> Any:
    """Build dataclass `kind` from a dict, strictly: no unknown keys, no wrong types.

    Raises ValueError with the key, the rule and the nearest known name.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{where or 'recipe'}={raw!r} must be a table")
    hints = typing.get_type_hints(kind)
    for key in raw:
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(hints)}"
            raise ValueError(f"unknown key {_join(where, key)}; {hint}")
    return kind(**{key: _convert(hints[key], value, _join(where, key)) for key, value in raw.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        require(value in arguments, f"{where}={value!r} must be one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        value = [value] if isinstance(value, str) else value
        require(isinstance(value, list | tuple), f"{where}={value!r} must be a list")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    assert isinstance(hint, type) and not isinstance(hint, types.UnionType), hint
    fits = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    require(fits, f"{where}={value!r} must be {WORDS.get(hint, hint.__name__)}")
    return value


def pairs(arguments: typing.Sequence[str]) -> list[tuple[str, str, Any]]:
    """`--section.key value` pairs -> (section, key, value); the value is read as TOML, else taken as a string."""
    found = []
    items = [part for a in arguments for part in (a.split("=", 1) if a.startswith("--") and "=" in a else [a])]
    for flag, text in zip(items[::2], [*items[1::2], None], strict=False):
        section, dot, key = flag.removeprefix("--").partition(".")
        if not flag.startswith("--") or not dot or text is None:
            raise ValueError(f"{flag!r} is not an override; write --section.key value, such as --run.steps 20")
        try:
            value = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            value = text
        found.append((section, key, value))
    return found


def plain(value: Any) -> Any:
    """Lists for tuples, all the way down, as TOML wants it."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def require(condition: bool, message: str) -> None:
    """Raise ValueError with `message` unless `condition` holds."""
    if not condition:
        raise ValueError(message)


def divides(name: str, value: int, whole: int, what: str) -> None:
    """Raise ValueError, with what would fit, unless `value` divides `whole`."""
    if value < 1 or whole % value:
        fits = ", ".join(str(n) for n in range(1, min(whole, 256) + 1) if whole % n == 0)
        raise ValueError(f"{name}={value} does not divide {whole} ({what}); use {fits}")
