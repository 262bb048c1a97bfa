"""Meaning of the definitions of a module, read from its syntax tree and never executed.

A definition (function, class, constant) becomes a text without docstrings, comments, formatting, the annotations of functions and the words
of errors and warnings. What it refers to is moved from the text into a list of absolute names, so that the text stays the same if a
definition is renamed or moved to another file, or an import is written differently. Names of classes stay in it: they can get into results.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from mgaa.methods import parse

STEPS = "tasks.cache.step"
"""Module whose decorators make a function a cached task."""
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_KINDS = ("ClassVar", "InitVar", "KW_ONLY")
"""Parts of an annotation that change the meaning of a dataclass field."""


@dataclass(frozen=True)
class Meaning:
    """Meaning of some statements: their text, in which `§` stands for each of `references`, absolute names in order."""

    text: str
    references: tuple[str, ...]


@dataclass(eq=False)
class Module:
    """Top level of a module.

    Attributes:
        definitions: statements that bind each name, except imports.
        imports: absolute name of each imported name.
        effects: other statements that are executed on import, such as a registration.
        modules: absolute names that are imported when the module is executed.
        everything: absolute names that are imported anywhere in it.
    """

    name: str
    package: str
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)
    effects: list[ast.stmt] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    everything: list[str] = field(default_factory=list)

    def tables(self) -> dict[str, list[str]]:
        """Keys of every dictionary literal, by its name."""
        return {name: [*_items(statements)] for name, statements in self.definitions.items() if _items(statements)}


@cache
def meaning_of(module: Module, name: str) -> Meaning:
    """Meaning of a definition: its name, `TABLE[key]` for one value of a dictionary literal, or "" for what is executed on import."""
    table, _, key = name.partition("[")
    if key:
        return _Writer(module).write([ast.Expr(_items(module.definitions[table])[key.removesuffix("]")])])
    return _Writer(module).write(module.definitions[name] if name else module.effects)


def read_module(name: str, path: Path) -> Module:
    """Read the file of a module and sort its statements; a text that was read before is not parsed again."""
    return _read_text(name, package_of(name, path), path.read_bytes())


@cache
def _read_text(name: str, package: str, code: bytes) -> Module:
    module = Module(name, package)
    tree = parse(code)
    module.everything += (name for statement in _imports_in(tree) for name in imported(statement, package).values())
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            module.imports |= imported(statement, package)
            module.modules += imported(statement, package).values()
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            for inner in _imports_in(statement):
                module.imports |= imported(inner, package)
        elif names := _bound_by(statement):
            for bound in names:
                module.definitions.setdefault(bound, []).append(statement)
        elif not _is_text(statement) and not _is_main(statement):
            module.effects.append(statement)
            for inner in _imports_in(statement):
                module.imports |= imported(inner, package)
    return module


def package_of(module: str, path: Path) -> str:
    """Package to which relative imports of a module refer."""
    return module if path.name == "__init__.py" else module.rpartition(".")[0]


def imported(statement: ast.Import | ast.ImportFrom, package: str) -> dict[str, str]:
    """Absolute name of each name that an import binds."""
    if isinstance(statement, ast.Import):
        return {alias.asname or alias.name.partition(".")[0]: _whole_or_top(alias) for alias in statement.names}
    above = package.split(".")[: len(package.split(".")) - statement.level + 1] if statement.level else []
    origin = ".".join([*above, *([statement.module] if statement.module else [])])
    return {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in statement.names}


def _whole_or_top(alias: ast.alias) -> str:
    return alias.name if alias.asname else alias.name.partition(".")[0]


def _imports_in(statement: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    return (node for node in ast.walk(statement) if isinstance(node, ast.Import | ast.ImportFrom))


def _bound_by(statement: ast.stmt) -> list[str]:
    """Names that a definition binds; none for a statement that also does something else, such as an assignment to an attribute."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    flat = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return (
        [part.id for part in flat if isinstance(part, ast.Name)] if all(isinstance(x, ast.Name) for x in flat) else []
    )


def _items(statements: Sequence[ast.stmt]) -> dict[str, ast.expr]:
    """Values of a dictionary literal, by their keys."""
    value = getattr(statements[0], "value", None)
    pairs = zip(value.keys, value.values, strict=True) if isinstance(value, ast.Dict) else ()
    return {key.value: item for key, item in pairs if isinstance(key, ast.Constant) and isinstance(key.value, str)}


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_main(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and "'__main__'" in ast.unparse(statement.test)


class _Writer:
    """Writer of statements of a module as text, in which names local to a function stay as they are."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.references: list[str] = []
        self.scopes: list[Mapping[str, str | None]] = []
        """Names that enclosing functions bind, innermost last: the absolute name of an imported one, None for the others."""

    def write(self, statements: Sequence[ast.stmt]) -> Meaning:
        text = ";".join(self.top(statement) for statement in statements)
        return Meaning(text, tuple(self.references))

    def top(self, statement: ast.stmt) -> str:
        """Write a statement of the module, without the name that it gives to a function or a constant."""
        if isinstance(statement, _FUNCTIONS):
            return self.function(statement, "")
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            single = isinstance(statement, ast.AnnAssign) or all(isinstance(x, ast.Name) for x in statement.targets)
            return f"={self.node(statement.value)}" if single else self.node(statement)
        return self.node(statement)

    def node(self, node: object) -> str:
        """Write a node, or what replaces it."""
        if isinstance(node, list):
            return f"[{','.join(self.node(each) for each in node if not self.is_prose(each))}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        if (absolute := self.absolute(node)) is not None:
            self.references.append(absolute)
            return "§"
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return self.function(node, node.name)
            case ast.Lambda():
                return self.function_of_one_line(node)
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                return self.comprehension(node)
            case ast.arg():
                return node.arg
            case ast.AnnAssign():
                kinds = [kind for kind in _KINDS if kind in ast.unparse(node.annotation)]
                return f"AnnAssign({self.plain(node.target)},{kinds},{self.node(node.value)})"
            case ast.Assert():
                return self.plain(node, "msg")
            case ast.Raise(exc=ast.Call(func=error)) | ast.Raise(exc=error):
                return f"Raise({self.node(error)})"
            case ast.Call() if self.says_words(node):
                return f"Call({self.node(node.func)})"
        return self.plain(node)

    def plain(self, node: ast.AST, *without: str) -> str:
        """Write a node by its fields, without empty ones, in which versions of Python differ."""
        left_out = {"ctx", "kind", "type_comment", "type_params", *without}
        fields = [(name, value) for name, value in ast.iter_fields(node) if name not in left_out]
        told = (f"{name}={self.node(value)}" for name, value in fields if value is not None and value != [])
        return f"{type(node).__name__}({','.join(told)})"

    def is_prose(self, node: object) -> bool:
        """Tell whether a statement or a decorator has no effect on results."""
        return isinstance(node, ast.Pass | ast.Import | ast.ImportFrom) or (
            isinstance(node, ast.stmt) and _is_text(node)
        )

    def absolute(self, node: ast.AST) -> str | None:
        """Absolute name that a name or a chain of attributes stands for; None if it is local or a builtin."""
        if isinstance(node, ast.Attribute):
            base = self.absolute(node.value)
            return None if base is None else f"{base}.{node.attr}"
        return self.find(node.id) if isinstance(node, ast.Name) else None

    def find(self, name: str) -> str | None:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        if name in self.module.definitions:
            return f"{self.module.name}.{name}"
        return self.module.imports.get(name)

    @contextmanager
    def scope(self, names: Mapping[str, str | None]) -> Iterator[None]:
        self.scopes.append(names)
        try:
            yield
        finally:
            self.scopes.pop()

    def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> str:
        outside = [self.node([each for each in node.decorator_list if not self.makes_step(each)]), self.node(node.args)]
        arguments = [each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)]
        with self.scope(dict.fromkeys(arguments) | _locals(node.body, self.module.package)):
            return f"{type(node).__name__}({name},{','.join(outside)},{self.node(node.body)})"

    def makes_step(self, decorator: ast.expr) -> bool:
        """Tell whether a decorator makes a function a task; those of its arguments that can change a result enter a key on their own."""
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        return (self.absolute(called) or "").rpartition(".")[0] == STEPS

    def function_of_one_line(self, node: ast.Lambda) -> str:
        arguments = self.node(node.args)
        with self.scope(dict.fromkeys(each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg))):
            return f"Lambda({arguments},{self.node(node.body)})"

    def comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> str:
        targets = [each.target for each in node.generators]
        names = {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
        first = self.node(node.generators[0].iter)  # evaluated outside
        with self.scope(dict.fromkeys(names)):
            return f"{first}:{self.plain(node)}"

    def says_words(self, node: ast.Call) -> bool:
        """Tell whether a call only makes an error or a warning, whose arguments are prose."""
        function = self.absolute(node.func) or ""
        return function == "warnings.warn" or function.startswith("mgaa.errors.")


def _locals(body: Sequence[ast.stmt], package: str) -> dict[str, str | None]:
    """Names that a function binds, except those of functions, classes and comprehensions inside."""
    names: dict[str, str | None] = {}
    outer: set[str] = set()
    waiting: list[ast.AST] = [*body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= imported(node, package)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            outer |= {*node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = None
        elif isinstance(node, _COMPREHENSIONS):
            walruses = [each.target for each in ast.walk(node) if isinstance(each, ast.NamedExpr)]
            names |= dict.fromkeys(target.id for target in walruses)
        elif not isinstance(node, ast.Lambda):
            bound = getattr(node, "id", None) if isinstance(getattr(node, "ctx", None), ast.Store | ast.Del) else None
            bound = bound or (
                getattr(node, "name", None)
                if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar)
                else None
            )
            names |= {bound: None} if bound else {}
            waiting += ast.iter_child_nodes(node)
    return {name: value for name, value in names.items() if name not in outer}
