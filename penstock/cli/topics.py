"""``penstock topics PLAN --create|--check``."""

import json
from pathlib import Path
from typing import Annotated

import typer


def topics(
    plan: Annotated[Path, typer.Argument(help="The JSON that `penstock plan PIPELINE` wrote.")],
    create: Annotated[bool, typer.Option("--create/--check", help="Make what is missing first, or only look.")] = False,
    replication: Annotated[int, typer.Option(help="Replicas of a new topic; -1 takes the broker's default.")] = -1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make or check the topics of a plan; exit status 1 when one is not as it has to be."""
    from penstock.plan import Plan
    from penstock.settings import Settings
    from penstock.topics import admin_client, check_topics, create_topics, topic_specs

    specs = topic_specs(Plan.load(plan))
    admin = admin_client(Settings())
    made = create_topics(admin, specs, replication) if create else []
    differences = check_topics(admin, specs)
    if as_json:
        typer.echo(json.dumps({"created": made, "differences": [d._asdict() for d in differences]}))
    else:
        for name in made:
            typer.echo(f"made {name}")
        for difference in differences:
            typer.echo(f"{difference.topic} {difference.what}. Mend: {difference.mend}")
        if not differences:
            typer.echo(f"{len(specs)} topics are as the plan needs them")
    raise typer.Exit(1 if differences else 0)
