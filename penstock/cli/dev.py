"""``penstock dev PIPELINE``: a broker and all workers of any pipeline, until Ctrl-C."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer


def dev(
    pipeline: Annotated[str, typer.Argument(help="Import string, e.g. pipelines.fraud.pipeline:pipeline.")],
    docker: Annotated[bool, typer.Option("--docker", help="Run the broker in Docker.")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Broker, logs and state, but not the stores of Feast; else a folder of var/dev.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print addresses and topics as one JSON object.")] = False,
) -> None:
    """Start a broker and all workers of a pipeline, with its schemas added to the lock, until Ctrl-C."""
    from penstock.local.dev import Development
    from penstock.local.resolve import describe_kind
    from penstock.local.until import interruptible, until_interrupted

    def say(line: str) -> None:
        typer.echo(line, err=as_json)

    say(describe_kind(docker))
    try:
        with interruptible(), ExitStack() as stack:
            running = Development(pipeline, docker, folder, say, stack)

            def tell() -> None:
                say(running.page())
                if as_json:
                    typer.echo(json.dumps(running.facts()))

            until_interrupted(tell, running.look)
    except KeyboardInterrupt:
        pass
    say("everything that was started has ended")
