"""`penstock broker start|stop|status`: an embedded broker that outlives the command, to poke at with other tools."""

import json
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from penstock.local.broker import EmbeddedBroker
from penstock.local.jars import JarsUnavailable
from penstock.local.java import JavaNotFound
from penstock.local.resolve import report_fetch
from penstock.local.state import BrokerError, BrokerState, data_bytes, read_state, stop_process, write_state

broker_app = typer.Typer(help="An embedded Kafka broker that keeps running.", no_args_is_help=True)

LEAST_HEAP_MB = 64
"""Kafka starts with it and takes records; below it the JVM says in words of its own why not."""

DataDir = Annotated[Path, typer.Option(help="Folder of the broker's data; it is made if it is not there.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@broker_app.command()
def start(
    data_dir: DataDir = Path("var/broker"),
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Port on 127.0.0.1; the former or a free one if not given.")
    ] = None,
    heap_mb: Annotated[int, typer.Option(min=LEAST_HEAP_MB, help="Largest heap of the JVM, in MiB.")] = 512,
    as_json: Json = False,
) -> None:
    """Start the broker and leave it running; tells its address if it already runs."""
    try:
        state = read_state(data_dir)
        if state is None or state.running_pid() is None:
            EmbeddedBroker(data_dir, port=port, heap_mb=heap_mb, detached=True, progress=report_fetch).start()
        elif port not in (None, state.port):
            raise BrokerError(
                f"a broker already runs on {data_dir} at {state.bootstrap}. End it first, with `penstock broker stop "
                f"--data-dir {data_dir}`."
            )
    except (BrokerError, JarsUnavailable, JavaNotFound) as error:
        _fail(str(error), as_json)
    _tell(data_dir, as_json)


@broker_app.command()
def stop(data_dir: DataDir = Path("var/broker"), as_json: Json = False) -> None:
    """Shut the broker down in order; its data stay for the next start."""
    state = _read(data_dir, as_json)
    if state is None or state.running_pid() is None:
        _say({"running": False, "stopped": False}, f"no broker runs on {data_dir}", as_json)
        return
    stop_process(state, timeout=30.0)
    write_state(data_dir, state.model_copy(update={"pid": None}))
    _say({"running": False, "stopped": True}, f"broker at {state.bootstrap} stopped", as_json)


@broker_app.command()
def status(data_dir: DataDir = Path("var/broker"), as_json: Json = False) -> None:
    """Address, process, uptime and data of the broker; exit status 1 when none runs."""
    if not _tell(data_dir, as_json):
        raise typer.Exit(1)


def _tell(data_dir: Path, as_json: bool) -> bool:
    state = _read(data_dir, as_json)
    pid = state.running_pid() if state is not None else None
    held = data_bytes(data_dir)
    if state is None or pid is None:
        facts: dict[str, Any] = {"running": False, "data_dir": str(data_dir), "data_bytes": held}
        _say(facts, f"no broker runs on {data_dir} ({held / 1e6:.1f} MB of data)", as_json)
        return False
    uptime = max(0.0, time.time() - state.started_at)
    facts = {
        "running": True,
        "bootstrap": state.bootstrap,
        "kafka": state.kafka,
        "pid": pid,
        "uptime_seconds": round(uptime, 1),
        "data_dir": str(data_dir),
        "data_bytes": held,
    }
    lines = [
        f"broker: embedded Apache Kafka {state.kafka} at {state.bootstrap}",
        f"pid {pid}, up {uptime:.0f} s, {held / 1e6:.1f} MB in {data_dir}",
        f"use it: export KAFKA_BOOTSTRAP_SERVERS={state.bootstrap}",
    ]
    _say(facts, "\n".join(lines), as_json)
    return True


def _read(data_dir: Path, as_json: bool) -> BrokerState | None:
    try:
        return read_state(data_dir)
    except BrokerError as error:
        _fail(str(error), as_json)


def _say(facts: dict[str, Any], text: str, as_json: bool) -> None:
    typer.echo(json.dumps(facts) if as_json else text)


def _fail(message: str, as_json: bool) -> NoReturn:
    if as_json:
        typer.echo(json.dumps({"running": False, "error": message}))
    else:
        typer.echo(f"penstock broker: {message}", err=True)
    raise typer.Exit(1)
