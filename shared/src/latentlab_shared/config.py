"""Configurations: frozen dataclasses filled from a file and ``--set key=value``, every mistake named by its key."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from latentlab_shared.errors import UserError
from latentlab_shared.files import plain

T = TypeVar("T")
_MAX_TEXT, _MAX_DEPTH = 256 * 2**10, 50  # characters of a file; mappings in mappings


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    result: dict[str, Any] = plain(config)
    return result


def from_dict(cls: type[T], values: Mapping[str, Any], where: object = "configuration", prefix: str = "") -> T:
    """Build dataclass ``cls``; keys that are left out keep their defaults.

    Args:
        cls: a dataclass; fields may be dataclasses, numbers, strings, bools, paths, literals, tuples or optional.
        values: the keys to set.
        where: what an error names, such as the file.
        prefix: the dotted key of ``cls`` inside a larger configuration.

    Raises:
        UserError: for a key that does not exist (naming the nearest that does) or a value of another type.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{prefix.rstrip('.') or 'this'} is no mapping of keys to values", where)
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            fix = f"Did you mean {prefix}{near[0]}?" if near else f"The keys are: {', '.join(sorted(known))}"
            raise UserError(f"unknown key {dotted}", where, fix)
        given[key] = _convert(hints[key], value, dotted, where)
    try:
        return cls(**given)
    except ValueError as error:
        raise UserError(str(error), where) from error
    except TypeError as error:
        missing = [f.name for f in dataclasses.fields(cls) if f.name in str(error)]  # type: ignore[arg-type]
        raise UserError(f"a value is needed for {prefix}{', '.join(missing) or cls.__name__}", where) from error


def load_config(
    cls: type[T],
    file: Path | None = None,
    overrides: Iterable[str] = (),
    base: T | Mapping[str, Any] | None = None,
) -> T:
    """Merge, weakest first: defaults of ``cls``, ``base``, a YAML or JSON file, ``key=value`` overrides.

    The override grammar is OmegaConf's dot list (``training.epochs=3``, ``model.heads=[4,4]``), as in Hydra.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged: Any = OmegaConf.create(plain(base) if base is not None else {})
    where = "--set"
    if file is not None:
        where = str(file)
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError("the configuration cannot be read", file, "Give a YAML or JSON file") from error
        _refuse_bombs(text, file)
        try:
            loaded = OmegaConf.create(text)
        except Exception as error:  # the YAML parser's own exceptions are not public names
            raise UserError(f"not valid YAML: {error}", file) from error
        if not OmegaConf.is_dict(loaded):
            raise UserError("a configuration is a mapping of keys to values", file)
        merged = OmegaConf.merge(merged, loaded)
    items = list(overrides)
    for item in items:
        if "=" not in item.lstrip("="):
            raise UserError(f"{item!r} is not key=value", "--set", f"Example: --set {_example_of(cls)}")
        try:
            OmegaConf.from_dotlist([item])
        except Exception as error:  # the YAML parser's own exceptions are not public names
            raise UserError(f"{item!r} has no value that YAML can read", "--set") from error
    try:
        merged = OmegaConf.merge(merged, OmegaConf.from_dotlist(items))
        values = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(str(error), where) from error
    assert isinstance(values, dict)
    return from_dict(cls, {str(k): v for k, v in values.items()}, f"{where} and --set" if file and items else where)


def _example_of(cls: type) -> str:
    """The first whole number of a configuration and its default, as ``--set`` takes it."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            if inner := _example_of(hint):
                return f"{field.name}.{inner}"
        elif hint is int and type(field.default) is int:
            return f"{field.name}={field.default}"
    return ""


def _refuse_bombs(text: str, file: Path) -> None:
    """Refuse what a few lines of YAML can blow up to gigabytes: aliases of aliases; and what no configuration needs."""
    import yaml

    if len(text) > _MAX_TEXT:
        raise UserError(f"is too large for a configuration (over {_MAX_TEXT // 2**10} KiB)", file)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise UserError("aliases (*name) are not read in a configuration", file, "Write the values out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise UserError("not a configuration: its YAML is nested too deeply", file)
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {error}", file) from error


def _convert(hint: Any, value: Any, key: str, where: object) -> Any:
    """Return ``value`` as the type ``hint``, or raise a ``UserError`` that names the key."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        choices = [a for a in arguments if a is not type(None)]
        for choice in choices:
            try:
                return _convert(choice, value, key, where)
            except UserError:
                if choice is choices[-1]:
                    raise
    if origin is typing.Literal:
        if value in arguments:
            return value
        raise UserError(f"{key}={_shown(value)} is not one of {', '.join(map(str, arguments))}", where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return from_dict(hint, value, where, f"{key}.")
    elif origin in (tuple, list) and isinstance(value, (list, tuple)):
        inner = [arguments[0]] * len(value) if origin is list or arguments[-1] is Ellipsis else list(arguments)
        if len(inner) == len(value):
            return origin(
                _convert(h, v, f"{key}[{i}]", where) for i, (h, v) in enumerate(zip(inner, value, strict=True))
            )
    elif origin is dict and isinstance(value, Mapping):
        return {str(k): _convert(arguments[1], v, f"{key}.{k}", where) for k, v in value.items()}
    elif hint is Any:
        return value
    elif hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):  # an integer of more than 308 digits
            return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    name = getattr(hint, "__name__", str(hint))
    if origin in (tuple, list):  # YAML has no tuples
        name = "list" if origin is list or arguments[-1] is Ellipsis else f"list of {len(arguments)} values"
    raise UserError(f"{key}={_shown(value)} is not of type {name}", where)


def _shown(value: Any, length: int = 200) -> str:
    """A value in an error message, cut if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integer of more than 4,300 digits
        return "an integer of thousands of digits"
    return text if len(text) <= length else f"{text[:length]}…"
