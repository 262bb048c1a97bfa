"""Shapes in the signatures of `mgaa` are checked while the tests run, by jaxtyping and beartype, where a signature has any.

jaxtyping's own hook (`--jaxtyping-packages`) wraps every function, and wraps an inner one again whenever it is defined: 1,017 functions for
123 with shapes, which took half of the time of the tests. Plain types are mypy's.
"""

import ast
from typing import Any

from beartype import beartype
from jaxtyping import _import_hook, install_import_hook

SHAPED = {"Float", "Int", "Bool", "Gradients", "Tokens", "Windows", "Ids"}
"""jaxtyping's words, and our names for types that are made of them."""


def check(function: Any, **options: Any) -> Any:
    """Check arguments and results of a function; under a name of its own, which is part of that of the cached bytecode."""
    return beartype(function, **options)


def has_shapes(annotations: list[ast.expr | None]) -> bool:
    """Whether one of them speaks of the shape of a tensor."""
    names = (node for each in annotations if each is not None for node in ast.walk(each) if isinstance(node, ast.Name))
    return any(name.id in SHAPED for name in names)


class ShapesTransformer(_import_hook.JaxtypingTransformer):
    """Decorates the functions and classes with shapes, and leaves the others as they are."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:  # noqa: N802
        given = node.args
        arguments = (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg)
        annotations = [node.returns, *(each.annotation for each in arguments if each is not None)]
        return super().visit_FunctionDef(node) if has_shapes(annotations) else self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:  # noqa: N802
        fields = [each.annotation for each in node.body if isinstance(each, ast.AnnAssign)]
        return super().visit_ClassDef(node) if has_shapes([*fields]) else self.generic_visit(node)


def install() -> None:
    """Check what is imported of the library from here on."""
    _import_hook.JaxtypingTransformer = ShapesTransformer
    install_import_hook("mgaa", "tests.support.shapes.check")
