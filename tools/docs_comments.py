"""What trailing comments say about parameters, results, fields and constants: the docments of the package.

fastcore reads such comments too, of functions which it has imported. This reads the source, and so it also finds the
comments behind fields and constants, and knows what has none without running anything.
"""

import ast
import io
import tokenize
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Told:
    "What the comments of one definition say."

    parameters: dict[str, str] = field(default_factory=dict)  # only those with a comment
    returns: str = ""
    value: str = ""  # of a constant or a field
    expression: str | None = None  # what a constant is set to, as it is written; None for what is no constant


def trailing_comments(
    source: str,  # of a Python file
) -> dict[int, str]:  # line → text
    "The comments which stand behind code."
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip():
            found[token.start[0]] = token.string.lstrip("# ").rstrip()
    return found


def parameters(
    function: Definition,
) -> list[ast.arg]:  # in order, without `self` and `cls`
    "Everything a caller may pass."
    given = function.args
    every = [*given.posonlyargs, *given.args, *filter(None, [given.vararg]), *given.kwonlyargs]
    every += filter(None, [given.kwarg])
    return [one for one in every if one.arg not in ("self", "cls")]


def told_of_function(
    function: Definition,
    comments: dict[int, str],  # line → text
) -> Told:
    "The comments behind the parameters, one a line, and behind the result."
    told = Told()
    for one in parameters(function):
        if one.lineno > function.lineno and (one.end_lineno or 0) in comments:
            told.parameters[one.arg] = comments[one.end_lineno or 0]
    if function.returns and (line := function.returns.end_lineno or 0) > function.lineno:
        told.returns = comments.get(line, "")
    return told


def assigned(
    statement: ast.stmt,
) -> list[tuple[str, ast.expr | None]]:  # name, and what it is set to, if that is told part by part
    "What an assignment defines."
    match statement:
        case ast.AnnAssign(target=ast.Name(id=name), value=value):
            return [(name, value)]
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return [(name, value)]
        case ast.Assign(targets=[ast.Tuple(elts=parts)], value=value):
            values = value.elts if isinstance(value, ast.Tuple) else [None] * len(parts)
            return [(part.id, each) for part, each in zip(parts, values, strict=True) if isinstance(part, ast.Name)]
    return []


@cache
def comments_of(
    path: Path,  # of a Python file
) -> dict[str, Told]:  # name inside the module, such as `Chain.head` → what is told
    "The docments of a file."
    source = path.read_text(encoding="utf-8")
    comments, found = trailing_comments(source), {}
    lines = source.split("\n")

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for statement in body:
            if isinstance(statement, Definition):
                found[prefix + statement.name] = told_of_function(statement, comments)
            elif isinstance(statement, ast.ClassDef):
                visit(statement.body, f"{prefix}{statement.name}.")
                found[prefix + statement.name] = found.get(f"{prefix}{statement.name}.__init__", Told())
            else:
                comment = comments.get(statement.end_lineno or 0, "")
                # Of its own lines alone: to find a piece of the whole file, ast would cut all of that into lines again.
                itself = "\n".join(lines[statement.lineno - 1 : statement.end_lineno])
                ast.increment_lineno(statement, 1 - statement.lineno)
                for name, value in assigned(statement):
                    written = ast.get_source_segment(itself, value) if value else None
                    found[prefix + name] = Told(value=comment, expression=written or "")

    visit(ast.parse(source).body, "")
    return found
