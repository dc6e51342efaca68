"""``penstock plan PIPELINE``: the one command that needs feast before workers start."""

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[str, typer.Argument(help="Import string of the pipeline, e.g. pipelines.flights.pipeline:pipeline.")]


def plan(
    pipeline: Source,
    out: Annotated[
        Path | None, typer.Option(help="Where the plan is written; var/NAME/plan.json if not given.")
    ] = None,
    extend_lock: Annotated[bool, typer.Option(help="Append schemas that schemas.lock lacks.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the plan and write no file, unless --out names one.")
    ] = False,
) -> None:
    """Compile a pipeline into the plan that workers start from."""
    from penstock.compiling import compile_pipeline
    from penstock.schemas.registry import ConfluentRegistry
    from penstock.settings import Settings

    settings = Settings()
    registry = ConfluentRegistry.from_settings(settings) if settings.schema_registry_url else None
    found = compile_pipeline(pipeline, "extend" if extend_lock else "require", registry)
    target = out or Path("var") / found.pipeline / "plan.json"
    if out is not None or not as_json:
        found.save(target)
    if as_json:
        typer.echo(found.model_dump_json())
        return
    typer.echo(f"plan {found.hash} of {found.pipeline}: {target}")
    for stage in found.stages:
        inputs = ", ".join(source.topic for source in stage.inputs)
        typer.echo(f"  {stage.name:<24} {inputs} → {', '.join(stage.outputs) or 'Feast'}")
    for view in found.views:
        typer.echo(f"  {view.name:<24} {view.key_bytes:,} bytes of state for each {view.key}")
    typer.echo(f"  {len(found.service.columns)} columns of {found.service.name!r}, hash {found.service.hash}")
