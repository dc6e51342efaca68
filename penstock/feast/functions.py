"""Which plain function stands behind an on-demand view, and the source text that its values depend on.

Workers never import feast, so the function has to live in a module that does not. Feast's decorator wants one in the
features module; then the function of the same name in ``functions`` beside it is the one that workers call, and
``penstock check`` holds the two equal.
"""

import ast
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from penstock.plan import PlanError, load_function

CONSTANTS = (int, float, str, bytes, bool, tuple, frozenset, type(None))


def function_path(udf: Any, features: ModuleType, what: str) -> str:
    """``module:name`` of the function that workers call for a view. Raises ``PlanError`` when there is none."""
    if not isinstance(udf, FunctionType) or "." in udf.__qualname__ or udf.__name__ == "<lambda>":
        raise PlanError(
            f"{what} in {features.__file__} has {getattr(udf, '__qualname__', udf)!r} for a function. "
            "Use a plain function at the top of a module, so that workers can import it by name"
        )
    # Feast's decorator sets __module__ to "__main__"; the globals still say where the function was written
    home = udf.__globals__["__name__"]
    if not _imports_feast(Path(udf.__code__.co_filename)):
        return f"{home}:{udf.__name__}"
    package = features.__name__.rpartition(".")[0]
    beside = f"{package}.functions" if package else "functions"
    if importlib.util.find_spec(beside) is not None:
        module = importlib.import_module(beside)
        if isinstance(getattr(module, udf.__name__, None), FunctionType):
            if _imports_feast(Path(module.__file__ or "")):
                raise PlanError(
                    f"{module.__file__} imports feast, and workers call its functions without. Take the import out"
                )
            return f"{beside}:{udf.__name__}"
    raise PlanError(
        f"{what}: its function {udf.__name__!r} is in {udf.__code__.co_filename}, "
        "which imports feast, and workers do not. "
        f"Put a function of the same name into {beside.replace('.', '/')}.py"
    )


def source_of(path: str) -> str:
    """The text of the function and of the module's own functions and constants that it uses, in a stable order."""
    return "\n".join(f"{name} = {text}" for name, text in sorted(_reached(load_function(path))))


def _reached(start: Any) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    left = [start]
    while left:
        function = left.pop()
        yield function.__name__, inspect.getsource(function)
        for name in _names(function.__code__):
            value = function.__globals__.get(name)
            if name in seen or name not in function.__globals__:
                continue
            seen.add(name)
            if isinstance(value, FunctionType) and value.__module__ == start.__module__ and value is not start:
                left.append(value)
            elif isinstance(value, CONSTANTS):
                yield name, repr(sorted(value, key=repr) if isinstance(value, frozenset) else value)


def _names(code: Any) -> list[str]:
    """The global names that a function's code uses, comprehensions and inner functions included."""
    inner = [constant for constant in code.co_consts if inspect.iscode(constant)]
    return [*code.co_names, *(name for part in inner for name in _names(part))]


def _imports_feast(file: Path) -> bool:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.append(node.module or "")
    return any(name == "feast" or name.startswith("feast.") for name in names)
