"""Holds tensors to the shapes that annotations promise, in every call of the package while tests run.

Annotations are strings and their names are imported for type checkers only, so the package never meets jaxtyping. Here
its modules are read with a decorator on each function, and on each dataclass, that has a shape: arguments are checked
before a call and the result after it. A dimension's name means one size in one call, and in one instance's fields and
its methods. Nothing but jaxtyping's annotations is looked at. EXPUNGE_SHAPES=off leaves it out.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import sys
import types
import typing
from collections import abc
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import torch
from jaxtyping import jaxtyped

KINDS = ("Bool", "Complex", "Float", "Inexact", "Int", "Integer", "Num", "Real", "Shaped", "UInt")
NAMES: dict[str, Any] = {
    **{name: getattr(jaxtyping, name) for name in KINDS},
    **{name: getattr(abc, name) for name in abc.__all__},
    "Any": Any,
    "Tensor": torch.Tensor,
    "torch": torch,
    "np": np,
}
"""What annotations may name that a module imports for type checkers only."""
SCALAR = jaxtyping.Float[torch.Tensor, ""]
SHAPE = re.compile(rf"\b(?:{'|'.join(KINDS)})\[|\bScalar\b")

Check = Callable[[Any], bool]
Checked = typing.TypeVar("Checked", bound=Callable[..., Any])


class WrongShape(AssertionError):
    """A tensor that is not what its annotation says."""


# Annotations


def evaluate(annotation: object, names: dict[str, Any]) -> Any:
    """What an annotation means; names that only type checkers know are those of `NAMES`."""
    return eval(annotation, {**NAMES, **names, "Scalar": SCALAR}) if isinstance(annotation, str) else annotation


def check_of(hint: Any, names: dict[str, Any]) -> Check | None:
    """Whether a value is what `hint` says of shapes; None where it says nothing of them."""
    hint = evaluate(hint, names)
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return lambda value: hasattr(value, "device_mesh") or isinstance(value, hint)  # a DTensor is a part
    origin, inner = typing.get_origin(hint), [check_of(each, names) for each in typing.get_args(hint)]
    if not any(inner):
        return (lambda value: value is None) if hint is type(None) else None
    each: list[Check] = [check or (lambda value: True) for check in inner]
    if origin in (types.UnionType, typing.Union):
        return lambda value: any(check(value) for check in each)
    if origin is tuple and typing.get_args(hint)[-1] is not ...:
        return lambda value: len(value) == len(each) and all(c(v) for c, v in zip(each, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, abc.Mapping):
        return lambda value: all(map(each[1], value.values()))
    if isinstance(origin, type) and issubclass(origin, (abc.Sequence, tuple)):
        return lambda value: all(map(each[0], value))
    return None


def items_of(hint: Any, names: dict[str, Any]) -> Check | None:
    """Whether an item is what `hint`, an iterator's, says of it; None where `hint` is nothing that runs out."""
    hint = evaluate(hint, names)
    runs_out = typing.get_origin(hint) in (abc.Iterator, abc.Iterable, abc.Generator)
    return check_of(typing.get_args(hint)[0], names) if runs_out else None


def describe(value: object) -> str:
    """Type and shape, never content."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {', '.join(map(describe, value[:8]))}"
    return type(value).__name__


# Functions


@dataclasses.dataclass
class Signature:
    """What a function's annotations say of shapes, worked out when it is first called."""

    function: Callable[..., Any]

    @functools.cached_property
    def parameters(self) -> list[tuple[int, str, Check]]:
        """Place, name and check of each parameter that has a shape."""
        listed = enumerate(inspect.signature(self.function).parameters.values())
        shaped = [(place, p) for place, p in listed if SHAPE.search(str(p.annotation))]
        return [(place, p.name, check) for place, p in shaped if (check := self._check(check_of, p.annotation))]

    @functools.cached_property
    def result(self) -> Check | None:
        return self._check(check_of, self._returns)

    @functools.cached_property
    def items(self) -> Check | None:
        return self._check(items_of, self._returns)

    @functools.cached_property
    def is_method(self) -> bool:
        return next(iter(inspect.signature(self.function).parameters), None) == "self"

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for name, check in FIELDS.get(type(args[0]), dict)().items() if self.is_method else ():
            check(getattr(args[0], name))  # it was held to them when it was made; here they bind their sizes
        for place, name, check in self.parameters:
            given = place < len(args)
            if (given or name in kwargs) and not check(args[place] if given else kwargs[name]):
                self.refuse(f"`{name}`", args[place] if given else kwargs[name], args, kwargs)

    def each(self, iterator: Iterator[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
        assert self.items
        for item in iterator:
            with jaxtyped("context"):
                if not self.items(item):
                    self.refuse("an item", item, args, kwargs)
            yield item

    def refuse(self, what: str, value: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> typing.NoReturn:
        signature = inspect.signature(self.function)
        given = signature.bind(*args, **kwargs).arguments
        beside = ", ".join(f"{name} {describe(given[name])}" for _, name, _ in self.parameters if name in given)
        shown = [f"{p.name}: {p.annotation}" for p in signature.parameters.values() if SHAPE.search(str(p.annotation))]
        raise WrongShape(
            f"{self.function.__module__}.{self.function.__qualname__}: {what} is {describe(value)}, "
            f"where annotations say ({', '.join(shown)}) -> {self._returns}. Given: {beside or 'no shapes'}."
        )

    @property
    def _returns(self) -> object:
        return self.function.__annotations__.get("return")

    def _check(self, find: Callable[..., Check | None], annotation: object) -> Check | None:
        return find(annotation, self.function.__globals__) if SHAPE.search(str(annotation)) else None


CHECKED: list[Signature] = []
"""Every function that was read with a check."""
FIELDS: dict[type, Callable[[], dict[str, Check]]] = {}
"""The checks of the fields of every dataclass that was read."""


def checked(function: Checked) -> Checked:
    """The function, held to its annotations."""
    signature = Signature(function)
    CHECKED.append(signature)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with jaxtyped("context"):
            signature.arguments(args, kwargs)
            result = function(*args, **kwargs)
            if signature.result and not signature.result(result):
                signature.refuse("the result", result, args, kwargs)
        return signature.each(result, args, kwargs) if signature.items else result

    return typing.cast(Checked, call)


# Dataclasses


def checks_of_fields(cls: type) -> dict[str, Check]:
    """A check for each field that has a shape; its names are those of the module that wrote it."""
    written = {name: c for c in reversed(cls.__mro__) for name in c.__dict__.get("__annotations__", {})}
    shaped = [field for field in dataclasses.fields(cls) if SHAPE.search(str(field.type))]
    checks = {f.name: check_of(f.type, vars(sys.modules[written[f.name].__module__])) for f in shaped}
    return {name: check for name, check in checks.items() if check}


def checked_fields(cls: type) -> type:
    """The dataclass, whose instances are held to the shapes of its fields when they are made."""
    build = cls.__init__
    checks = FIELDS[cls] = functools.cache(functools.partial(checks_of_fields, cls))

    @functools.wraps(build)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        build(self, *args, **kwargs)
        with jaxtyped("context"):
            for name, check in checks().items():
                if not check(getattr(self, name)):
                    fields = ", ".join(f"{each} {describe(getattr(self, each))}" for each in checks())
                    raise WrongShape(f"{cls.__module__}.{cls.__qualname__}: `{name}` does not fit. Fields: {fields}.")

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


# The hook


class Decorate(ast.NodeVisitor):
    """Puts the checks where a shape stands: below a function's other decorators, above a class's."""

    def __init__(self, evaluated: bool) -> None:
        self.evaluated = evaluated
        """Whether the module evaluates its annotations: an alias of a shape is then a plain tensor when it is read."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:  # noqa: N802
        shaped = [
            (owner, name) for owner, name in _annotations(node) if SHAPE.search(ast.unparse(getattr(owner, name)))
        ]
        if shaped:
            node.decorator_list.append(_name("__checked__", node))
        for owner, name in shaped if self.evaluated else ():
            setattr(owner, name, _text(getattr(owner, name)))
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:  # noqa: N802
        if any("dataclass" in ast.unparse(each) for each in node.decorator_list):
            node.decorator_list.insert(0, _name("__checked_fields__", node))
        self.generic_visit(node)


def _annotations(node: ast.FunctionDef) -> Iterator[tuple[ast.AST, str]]:
    """Where a function's annotations stand: each an attribute of a node."""
    yield from ((each, "annotation") for each in ast.walk(node.args) if isinstance(each, ast.arg) and each.annotation)
    if node.returns:
        yield node, "returns"


def _text(annotation: ast.expr) -> ast.expr:
    """The annotation as a string."""
    if isinstance(annotation, ast.Constant):
        return annotation
    return ast.copy_location(ast.Constant(ast.unparse(annotation)), annotation)


def _name(name: str, node: ast.stmt) -> ast.expr:
    return ast.fix_missing_locations(ast.copy_location(ast.Name(name, ast.Load()), node))


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


class Loader(SourceFileLoader):
    """Reads a module with checks; what it compiles is not kept on disk, where the plain module is."""

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> types.CodeType:
        tree = ast.parse(data, path)
        Decorate(evaluated=not any(_is_future(node) for node in tree.body)).visit(tree)
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def path_stats(self, path: Any) -> typing.NoReturn:
        raise OSError("neither written to __pycache__ nor read from there")

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__.update(__checked__=checked, __checked_fields__=checked_fields)
        super().exec_module(module)


class Finder(MetaPathFinder):
    """Finds the package's modules that write shapes."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != "expunge":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec and spec.origin and isinstance(spec.loader, SourceFileLoader) and _shaped(spec.origin):
            spec.loader = Loader(fullname, spec.origin)
        return spec


def _shaped(path: str) -> bool:
    return bool(SHAPE.search(Path(path).read_text(encoding="utf-8")))


def install() -> None:
    """Check the package's modules from here on."""
    there = [name for name in sys.modules if name.partition(".")[0] == "expunge"]
    assert not there, f"{there[0]} is imported already, and would not be checked"
    sys.meta_path.insert(0, Finder())
