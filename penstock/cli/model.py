"""`penstock model …`: versions in the registry, and who serves."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.models.control import InForce
from penstock.models.control_topic import promote, read_control
from penstock.models.manifest import FILE, Manifest, ModelError
from penstock.models.registry import ModelRegistry
from penstock.pipeline import train_module
from penstock.plan import Plan, PlanError
from penstock.settings import Settings

model_app = typer.Typer(help="Model versions and who serves them.", no_args_is_help=True, add_completion=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Registry = Annotated[
    str | None, typer.Option("--registry", help="Folder or fsspec URL of the models; PENSTOCK_MODELS_URL if not given.")
]
Name = Annotated[str, typer.Argument(help="The model's name.")]
Version = Annotated[str, typer.Argument(help="The version, MAJOR.MINOR.PATCH.")]
PlanFile = Annotated[Path, typer.Argument(help="The JSON that `penstock plan PIPELINE` wrote.")]


@model_app.command("list")
def list_versions(
    name: Annotated[str | None, typer.Argument(help="One model; all if not given.")] = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """The versions of the registry, oldest first."""
    with _reaching():
        models = ModelRegistry(_url(registry))
        found = {model: models.versions(model) for model in ([name] if name else models.names())}
        lines = [f"{model} {version}" for model, versions in found.items() for version in versions]
        where = models.url if models.there() else f"{models.url}, where there is nothing yet"
        _say(found, "\n".join(lines) or f"no version{'s' if name is None else f' of {name}'} in {where}", as_json)


@model_app.command()
def show(name: Name, version: Version, registry: Registry = None, as_json: Json = False) -> None:
    """The manifest of a version."""
    with _reaching():
        manifest, digest = ModelRegistry(_url(registry)).manifest(name, version)
        facts = {"digest": digest, **manifest.model_dump(mode="json")}
        _say(facts, "\n".join(_lines(manifest, digest)), as_json)


@model_app.command()
def verify(name: Name, version: Version, registry: Registry = None, as_json: Json = False) -> None:
    """Read every file of a version and check it against the manifest; exit status 1 when one is not as it was
    registered.
    """
    with _reaching():
        verified = ModelRegistry(_url(registry)).load(name, version)
        total = sum(len(content) for content in verified.files.values())
        _say(
            {"verified": True, "digest": verified.digest, "files": len(verified.files), "bytes": total},
            f"{verified.manifest.label}: {len(verified.files)} files, {total:,} bytes, as registered (sha256; no "
            f"signature is checked)\ndigest {verified.digest}",
            as_json,
        )


@model_app.command()
def train(
    pipeline: Annotated[
        str, typer.Argument(help="Import string of the pipeline, e.g. pipelines.flights.pipeline:pipeline.")
    ],
    plan: Annotated[
        Path | None, typer.Option(help="The JSON that `penstock plan PIPELINE` wrote; compiled anew if not given.")
    ] = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Train by `train` in train.py beside the pipeline, unless a version of the same data and features is registered;
    the last line is the version.
    """
    beside = train_module(pipeline)
    if beside is None:
        package = pipeline.partition(":")[0].rpartition(".")[0]
        raise PlanError(
            f"{package or pipeline} has no train.py. Write one with train(models_url, plan, progress), as "
            "`penstock new` does, or put a version that was trained elsewhere into the registry: penstock model "
            "register FOLDER"
        )
    if plan is not None:
        found = Plan.load(plan)
    else:
        from penstock.compiling import compile_pipeline  # imports feast

        found = compile_pipeline(pipeline)
    if found.model is None:
        raise PlanError(f"{pipeline} declares no model, so there is nothing to train")
    try:
        version = import_module(beside).train(_url(registry), found, lambda line: typer.echo(line, err=as_json))
    except OSError as error:  # of the data: the registry's are said by itself
        raise ModelError(str(error)) from None
    _say({"name": found.model.name, "version": version}, version, as_json)


@model_app.command()
def register(
    folder: Annotated[Path, typer.Argument(help="A folder with manifest.json and the files that it lists.")],
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Put a version into the registry; what is there already never changes."""
    with _reaching():
        manifest = Manifest.load(_read(folder / FILE), str(folder / FILE))
        files = {name: _read(folder / name) for name in manifest.files}
        models = ModelRegistry(_url(registry))
        models.register(manifest, files)
        _, digest = models.manifest(manifest.name, manifest.version)
        where = models.where(manifest.name, manifest.version)
        _say(
            {"name": manifest.name, "version": manifest.version, "digest": digest, "where": where},
            f"{manifest.label} is in {where}\ndigest {digest}",
            as_json,
        )


@model_app.command("promote")
def promote_version(
    plan: PlanFile,
    version: Version,
    author: Annotated[str | None, typer.Option(help="Who decided.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why.")] = None,
    registry: Registry = None,
    as_json: Json = False,
) -> None:
    """Make a version the champion: every inference worker loads it and swaps between two batches."""
    with _reaching():
        found = promote(_settings(registry), Plan.load(plan), version, author, reason)
        _say(_facts(found), f"{found.message.model} {version} is champion by message {found.offset}", as_json)


@model_app.command()
def status(plan: PlanFile, as_json: Json = False) -> None:
    """Who serves, by the control topic; exit status 1 when nobody does."""
    loaded = Plan.load(plan)
    in_force = [found for found in read_control(Settings(), loaded) if found.message.version is not None]
    lines = [
        f"{m.role}: {m.model} {m.version}, message {found.offset}, {m.time:%Y-%m-%d %H:%M:%S} UTC, "
        f"by {m.author or 'unknown'}: {m.reason or 'no reason given'}"
        for found in in_force
        for m in [found.message]
    ]
    _say([_facts(found) for found in in_force], "\n".join(lines) or f"{loaded.pipeline}: nobody serves", as_json)
    if not in_force:
        raise typer.Exit(1)


def _lines(manifest: Manifest, digest: str) -> Iterator[str]:
    yield f"{manifest.label} ({manifest.task}), registered {manifest.created:%Y-%m-%d %H:%M:%S} UTC"
    yield f"digest   {digest}"
    yield f"features {manifest.feature_service} {manifest.feature_service_hash}, {len(manifest.input.columns)} columns"
    for name, facts in manifest.files.items():
        yield f"file     {name}, {facts.size:,} bytes, sha256 {facts.sha256}"
    for name, value in manifest.metrics.items():
        yield f"metric   {name} {value:.6g}"


def _facts(found: InForce) -> dict[str, Any]:
    return {**found.message.model_dump(mode="json"), "partition": found.partition, "offset": found.offset}


def _url(registry: str | None) -> str:
    return registry or Settings().models_url


def _settings(registry: str | None) -> Settings:
    settings = Settings()
    return settings if registry is None else settings.model_copy(update={"models_url": registry})


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}. Give a folder with {FILE} and the files that it lists") from None


def _say(facts: Any, text: str, as_json: bool) -> None:
    typer.echo(json.dumps(facts) if as_json else text)


@contextmanager
def _reaching() -> Iterator[None]:
    """The registry; raises ``ModelError`` where it cannot be reached."""
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"the registry cannot be used: {error}. Set PENSTOCK_MODELS_URL to one that can be reached"
        ) from None
