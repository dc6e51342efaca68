"""The command ``penstock``. A sub-command's module is imported when it is called, so that ``--help`` and ``penstock
run`` start fast: importing this module imports neither pyarrow nor numba nor feast.
"""

import json
import os
import sys
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from penstock import interrupts


class SubCommand(NamedTuple):
    """``path``: ``module:name`` of a function, or of a Typer of more commands; ``help`` is shown without importing
    it."""

    path: str
    help: str


SUB_COMMANDS = {
    "demo": SubCommand("penstock.cli.demo:demo", "Replay real flights through a real Kafka, and count them."),
    "dev": SubCommand("penstock.cli.dev:dev", "A broker and all workers of a pipeline, until Ctrl-C."),
    "new": SubCommand("penstock.cli.new:new", "Make a small working pipeline in a folder of your own."),
    "check": SubCommand("penstock.cli.check:check", "Run the shared checks on a pipeline."),
    "doctor": SubCommand("penstock.cli.doctor:doctor", "Look at a running pipeline and say what mends it."),
    "plan": SubCommand("penstock.cli.plan:plan", "Compile a pipeline into the plan that workers start from."),
    "run": SubCommand("penstock.cli.run:run", "Run one worker of one stage until SIGTERM."),
    "topics": SubCommand("penstock.cli.topics:topics", "Make or check the topics of a plan."),
    "schemas": SubCommand("penstock.cli.schemas:schemas_app", "Their lock, what may change, and a registry by URL."),
    "model": SubCommand("penstock.cli.model:model_app", "Model versions and who serves them."),
    "dead": SubCommand("penstock.cli.dead:dead_app", "Dead letters: what died, why, and another try."),
    "quarantine": SubCommand(
        "penstock.cli.quarantine:quarantine_app", "Rows that killed their workers: which, and to lift them."
    ),
    "broker": SubCommand("penstock.cli.broker:broker_app", "An embedded Kafka broker that keeps running."),
}
"""Name → where it is; shown in this order."""

AS_JSON = "penstock.as_json"


class LazyGroup(TyperGroup):
    """Knows its commands by name and help; loads the one that is called. What goes wrong for a known reason is one line
    on stderr, or with ``--json`` an object with ``error`` on stdout. Any other error keeps its traceback, on stderr."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        ctx.meta[AS_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        found = command if name is None else load_command(name)
        interrupts.raise_again()
        return name, found, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:  # told apart below: what is not ours goes on as it is
            as_json, line = ctx.meta[AS_JSON], _line(error)
            if ctx.params["debug"] or not _is_told(error):
                if as_json and not type(error).__module__.startswith(("click", "typer")):  # an exit is no error
                    typer.echo(json.dumps({"error": f"{type(error).__name__}: {line}"}))
                raise
            typer.echo(json.dumps({"error": line}) if as_json else f"penstock: {line}", err=not as_json)
            raise typer.Exit(1) from None


def load_command(name: str) -> Any:
    """The real command behind a name of ``SUB_COMMANDS``."""
    module, _, attribute = SUB_COMMANDS[name].path.partition(":")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False)
        single.command(name)(found)
        found = single
    return typer.main.get_command(found)


def _is_told(error: Exception) -> bool:
    """Penstock's own errors say what is wrong and the mend; anything else needs its traceback."""
    return isinstance(error, ValidationError) or type(error).__module__.startswith("penstock.")


def _line(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{error.title}({where}=…): {first['msg']}"


app = typer.Typer(
    cls=LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False, help="Kafka topics into a running ML system."
)


@app.callback()
def main(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    # pipelines are found from the folder where the command is called, as uvicorn finds an application
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    if context.invoked_subcommand != "run" and any(name.startswith("PENSTOCK_") for name in os.environ):
        from penstock.settings import misspelt

        for line in misspelt(os.environ):  # a worker's log says it
            typer.echo(f"penstock: {line}", err=True)


def _stand_in(name: str, text: str) -> None:
    @app.command(name, help=text)
    def stand_in() -> None:
        raise AssertionError(f"{name} is resolved to its own command before it is called")


for _name, _command in SUB_COMMANDS.items():
    _stand_in(_name, _command.help)
