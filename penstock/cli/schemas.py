"""``penstock schemas check|lock|register``: what CI and a release ask of the schemas of a pipeline."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

schemas_app = typer.Typer(no_args_is_help=True, help="Schemas: their lock, what may change, and a registry by URL.")

Folder = Annotated[Path, typer.Argument(help="The folder of a pipeline, e.g. pipelines/flights.", file_okay=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class Problem(NamedTuple):
    """``place``: the file it is about."""

    place: str
    message: str


@schemas_app.command()
def check(
    folders: Annotated[list[Path], typer.Argument(help="Folders of pipelines, e.g. pipelines/flights.")],
    as_json: AsJson = False,
) -> None:
    """Every version in the lock may follow those before it, and the .avsc files, those that all pipelines share among
    them, are the newest ones; else exit 1."""
    problems = [problem for folder in folders for problem in problems_of(folder)]
    if as_json:
        typer.echo(json.dumps({"ok": not problems, "problems": [p._asdict() for p in problems]}))
    else:
        for problem in problems:
            typer.echo(f"{problem.place}: {problem.message}", err=True)
        if not problems:
            typer.echo(f"the schemas of {', '.join(map(str, folders))} are as locked, and every version is compatible")
    raise typer.Exit(1 if problems else 0)


@schemas_app.command()
def lock(
    pipeline: Annotated[str, typer.Argument(help="Import string, e.g. pipelines.flights.pipeline:pipeline.")],
    as_json: AsJson = False,
) -> None:
    """Append the schemas that the pipeline has now, its generated ones included, to the schemas.lock beside it."""
    from penstock.compiling import compile_pipeline

    plan = compile_pipeline(pipeline, lock="extend")
    ids = {topic.value.subject: topic.value.id for topic in plan.topics if topic.value is not None}
    if as_json:
        typer.echo(json.dumps({"ids": ids}))
    else:
        typer.echo(f"{len(ids)} schemas are locked. Commit schemas.lock")


@schemas_app.command()
def register(
    folder: Folder,
    url: Annotated[str | None, typer.Option(help="Confluent-compatible registry; default: the settings' one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Register every version in the folder's lock, oldest first, with a registry by URL."""
    from penstock.schemas.lock import NAME, SchemaLock
    from penstock.schemas.registry import ConfluentRegistry
    from penstock.settings import Settings

    settings = Settings()
    if url is not None:
        settings = settings.model_copy(update={"schema_registry_url": url})
    registry = ConfluentRegistry.from_settings(settings)
    locked = SchemaLock.load(folder / NAME)
    ids = [
        {"subject": entry.subject, "version": entry.version, "id": registry.register(entry.subject, entry.schema)}
        for subject in locked.subjects
        for entry in locked.entries(subject)
    ]
    registry.close()
    if as_json:
        typer.echo(json.dumps({"registered": ids}))
    else:
        for one in ids:
            typer.echo(f"{one['subject']} v{one['version']} has id {one['id']}")
        if not ids:
            typer.echo(f"{folder / NAME} holds no schemas yet. Run `penstock schemas lock` first")


def problems_of(folder: Path) -> Iterator[Problem]:
    """What is wrong with the schemas of one pipeline folder."""
    from penstock.schemas.compatibility import IncompatibleSchema
    from penstock.schemas.compatibility import check as differences
    from penstock.schemas.files import shared_folder
    from penstock.schemas.lock import NAME, DamagedLock, SchemaLock

    path = folder / NAME
    if not path.exists():
        yield Problem(str(path), "there is no lock. Run `penstock schemas lock PIPELINE` and commit it.")
        return
    try:
        locked = SchemaLock.load(path)
    except DamagedLock as error:
        yield Problem(str(path), str(error))
        return
    for subject in locked.subjects:
        versions = [entry.schema for entry in locked.entries(subject)]
        for n in range(1, len(versions)):
            found = differences(versions[n], versions[:n])
            if found:
                yield Problem(str(path), str(IncompatibleSchema(subject, n + 1, found)))
    versions_of = {subject: [entry.schema for entry in locked.entries(subject)] for subject in locked.subjects}
    for file in sorted(folder.glob("*.avsc")):
        yield from _problems_of_file(file, versions_of)
    names = {_full_name(versions[-1]) for versions in versions_of.values()}
    for file in sorted(shared_folder().glob("*.avsc")):
        if _full_name(json.loads(file.read_text("utf-8"))) in names:  # no pipeline uses all of them
            yield from _problems_of_file(file, versions_of)


def _problems_of_file(file: Path, versions_of: dict[str, list[dict[str, Any]]]) -> Iterator[Problem]:
    from penstock.codec.shapes import UnsupportedSchema
    from penstock.schemas.compatibility import check as differences

    try:
        schema = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        yield Problem(str(file), f"this is not JSON: {error}.")
        return
    if any(schema == versions[-1] for versions in versions_of.values()):
        return
    subject = next((s for s, known in versions_of.items() if _full_name(known[-1]) == _full_name(schema)), None)
    if subject is None:
        yield Problem(str(file), "this schema is not in the lock. Run `penstock schemas lock PIPELINE` and commit it.")
        return
    try:
        found = differences(schema, versions_of[subject])
    except UnsupportedSchema as error:
        yield Problem(str(file), str(error))
        return
    mend = f"And it may not follow it: {found[0]}" if found else "Run `penstock schemas lock PIPELINE` and commit it."
    yield Problem(str(file), f"this is not the newest version of {subject!r} in the lock. {mend}")


def _full_name(schema: Any) -> str:
    if not isinstance(schema, dict):
        return ""
    return ".".join(filter(None, (schema.get("namespace"), schema.get("name"))))
