"""What the reference shows is there: docstrings, what each parameter means, and which errors are raised."""

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
from docs_comments import Definition, Told, comments_of, parameters
from docs_generate import modules, promised

from lguest_nb.memory import LguestError

OWN_CLASSES = {  # a type which says by itself what the parameter is
    name
    for module in modules()
    for name, found in vars(import_module(module)).items()
    if inspect.isclass(found) and found.__module__.startswith("lguest_nb.")
}


class Public(NamedTuple):
    "A function or method which the reference has."

    module: str
    name: str  # inside the module
    node: Definition
    holder: ast.ClassDef | None  # the class it is a method of

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def source(module: str) -> Path:
    return Path(import_module(module).__file__ or "")


def public_names(module: str) -> list[str]:
    return list(getattr(import_module(module), "__all__", []))


def functions() -> Iterator[Public]:
    "Public functions, and public methods and constructors of public classes."
    for module in modules():
        for node in ast.parse(source(module).read_text(encoding="utf-8")).body:
            if getattr(node, "name", None) not in public_names(module):
                continue
            if isinstance(node, Definition):
                yield Public(module, node.name, node, None)
            elif isinstance(node, ast.ClassDef):
                for method in node.body:
                    if isinstance(method, Definition) and (method.name == "__init__" or method.name[0] != "_"):
                        yield Public(module, f"{node.name}.{method.name}", method, node)


FUNCTIONS = list(functions())


def docstring(public: Public) -> str:
    "Its own, that of what it overrides or of the protocol it is part of; for a constructor the class's counts too."
    found = import_module(public.module)
    for part in public.name.split("."):
        owner, found = found, inspect.getattr_static(found, part)
    if isinstance(found, property | staticmethod | classmethod):
        found = found.fget if isinstance(found, property) else found.__func__
    if public.node.name == "__init__":
        return f"{inspect.getdoc(owner) or ''}\n{ast.get_docstring(public.node) or ''}"
    return inspect.getdoc(getattr(owner, public.node.name)) or promised(owner, public.node.name)


@pytest.mark.parametrize("module", modules())
def test_a_module_and_its_classes_say_what_they_are(module: str) -> None:
    found = import_module(module)
    assert (found.__doc__ or "").strip(), f"{module} has no docstring: its notebook has no `> one line`"
    silent = [
        name
        for name in public_names(module)
        if inspect.isclass(thing := getattr(found, name))
        and (not (thing.__dict__.get("__doc__") or "").strip() or (thing.__doc__ or "").startswith(f"{name}("))
    ]
    assert not silent


@pytest.mark.parametrize("public", FUNCTIONS, ids=str)
def test_a_public_function_says_what_it_does(public: Public) -> None:
    assert docstring(public).strip(), f"{public} has no docstring"


def needs_words(annotation: ast.expr | None) -> bool:
    "Does the type not say what the parameter is? A `GuestMemory` does, an `int` does not."
    return not names_in(annotation) & OWN_CLASSES


@pytest.mark.parametrize("public", [each for each in FUNCTIONS if len(parameters(each.node)) > 1], ids=str)
def test_each_of_several_parameters_is_told(public: Public) -> None:
    "By a comment behind it, by a type of ours, or by name in the docstring; an override may lean on what it overrides."
    told, said = comments_of(source(public.module)).get(public.name, Told()), docstring(public)
    if public.holder is not None and public.node.name != "__init__" and not ast.get_docstring(public.node):
        return
    silent = [
        one.arg
        for one in parameters(public.node)
        if needs_words(one.annotation) and one.arg not in told.parameters and not re.search(rf"\b{one.arg}\b", said)
    ]
    assert not silent, f"{public}: what are {', '.join(silent)}?"


def names_in(node: ast.AST | None) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} if node else set()


def family(module: str, name: str) -> set[str]:
    "An error of ours with all it is a kind of, up to `LguestError`; empty for every other exception."
    found = getattr(import_module(module), name, None)
    if not (inspect.isclass(found) and issubclass(found, LguestError)):
        return set()
    return {each.__name__ for each in found.__mro__ if issubclass(each, LguestError)}


class Raises(ast.NodeVisitor):
    "Collects what the body of a function raises, and which private functions beside it are called."

    def __init__(self, module: str) -> None:
        self.module, self.errors, self.calls = module, set[str](), set[str]()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        "A function inside the function runs some other time."

    def visit_Raise(self, node: ast.Raise) -> None:
        thing = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        if isinstance(thing, ast.Name) and family(self.module, thing.id):
            self.errors.add(thing.id)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        match node.func:
            case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="self"), attr=name) if name.startswith("_"):
                self.calls.add(name)
        self.generic_visit(node)

    def visit_Try(self, node: ast.Try) -> None:
        inside = Raises(self.module)
        for statement in node.body:
            inside.visit(statement)
        caught = set().union(*(names_in(handler.type) for handler in node.handlers)) | {""}
        if not caught & {"Exception", "BaseException"}:
            self.errors |= {name for name in inside.errors if not family(self.module, name) & caught}
            self.calls |= inside.calls
        for statement in (*(part for handler in node.handlers for part in handler.body), *node.orelse, *node.finalbody):
            self.visit(statement)


def spoken_for_all(public: Public) -> str:
    'What a class says about all its methods, as in "Methods raise ..."; a class may say it of those built on it.'
    if public.holder is None:
        return ""
    built_on = getattr(import_module(public.module), public.holder.name).__mro__
    return " ".join(each.__doc__ or "" for each in built_on if each.__module__ == public.module)


def raised_by(public: Public) -> set[str]:
    "Errors of ours which it raises itself, or by way of private functions of its module or class."
    tree = ast.parse(source(public.module).read_text(encoding="utf-8"))
    beside = {
        node.name: node
        for node in [*tree.body, *(public.holder.body if public.holder else [])]
        if isinstance(node, Definition)
    }
    errors, seen, ahead = set[str](), set[str](), [public.node]
    while ahead:
        visitor = Raises(public.module)
        for statement in ahead.pop().body:
            visitor.visit(statement)
        errors |= visitor.errors
        ahead += [beside[name] for name in visitor.calls - seen if name in beside]
        seen |= visitor.calls
    return errors


@pytest.mark.parametrize("public", [each for each in FUNCTIONS if raised_by(each)], ids=str)
def test_a_function_names_the_errors_it_raises(public: Public) -> None:
    "As `Raises X`, where X is the error or what it is a kind of; `GuestError` is enough for a `BadAddress`."
    said = docstring(public) + spoken_for_all(public)
    silent = {
        name for name in raised_by(public) if not any(f"`{kind}`" in said for kind in family(public.module, name))
    }
    assert not silent and re.search(r"\b[Rr]aises?\b", said), f"{public} raises {', '.join(sorted(raised_by(public)))}"
