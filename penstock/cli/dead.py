"""``penstock dead list|show|stats|replay NAME.dead``: what died, why, and another try."""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from heapq import nlargest
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from penstock.dead.letters import Filter, Letter, letter_of, letters
from penstock.dead.payload import Lookup, decode, hex_dump
from penstock.dead.replay import MAX_ATTEMPTS, SENT, Options, Report, replay
from penstock.dead.topics import PlaceReader, TopicUnreadable, pipeline_of
from penstock.plan import Plan, load_function
from penstock.schemas.registry import ConfluentRegistry, LockRegistry
from penstock.settings import Settings

dead_app = typer.Typer(
    help="Dead letters: what died, why, and another try.", no_args_is_help=True, add_completion=False
)


def _time(text: str) -> datetime:
    """A moment; UTC where the text names no zone."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


Topic = Annotated[str, typer.Argument(help="The topic of dead letters, NAME.dead.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reason = Annotated[str | None, typer.Option(help="Only letters of this reason, e.g. 'bad magic'.")]
Stage = Annotated[str | None, typer.Option(help="Only letters of this stage, e.g. features.aircraft.")]
Since = Annotated[
    datetime | None, typer.Option(parser=_time, metavar="T", help="Only letters since then, e.g. 2026-03-01T12:00.")
]
Until = Annotated[datetime | None, typer.Option(parser=_time, metavar="T", help="Only letters before then.")]


@dead_app.command("list")
def list_letters(
    topic: Topic,
    reason: Reason = None,
    stage: Stage = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Letters by time, newest last."""
    chosen = _letters(topic, Filter(reason, stage, since, until))
    newest = nlargest(limit, map(_facts, chosen), key=_when_and_where)[::-1]
    others = Counter() if newest or as_json else _reasons(_letters(topic, Filter()))
    if as_json:
        for facts in newest:
            typer.echo(json.dumps(facts))
        return
    if not newest:
        there = ", ".join(f"{n:,} of stage {stage} for {reason!r}" for (stage, reason), n in others.most_common())
        typer.echo(_printable(f"no such letter in {topic}; there are {there}" if there else f"no letters in {topic}"))
        return
    table = _table("letter", "time", "stage", "reason", "origin", "size", "message")
    # what names a letter is never cut, and the message before anything else
    table.expand, table.columns[-1].ratio = True, 1
    table.columns[0].min_width = max(len(f["letter"]) for f in newest)
    for f in newest:
        cells = f["letter"], f["time"][:19], f["stage"], f["reason"], f["origin"] or "unknown", f"{f['size']:,}"
        table.add_row(*(Text(_printable(cell)) for cell in (*cells, f["message"])))
    _print(table)


@dead_app.command()
def show(
    topic: Topic,
    letter: Annotated[str, typer.Argument(metavar="PARTITION@OFFSET", help="The letter, as `list` names it.")],
    plan: Annotated[Path | None, typer.Option(help="The plan, whose schemas Avro is decoded with.")] = None,
    lock: Annotated[Path | None, typer.Option(help="A schemas.lock to decode Avro with, in place of a plan.")] = None,
    most: Annotated[
        int,
        typer.Option("--bytes", min=0, help="Bytes of the hex dump, and characters of what is decoded, at the most."),
    ] = 4096,
    as_json: Json = False,
) -> None:
    """One letter: its headers, why it died, and its payload, decoded as far as it goes and as hex."""
    settings = Settings()
    pipeline_of(topic)
    lookup = _lookup(settings, plan, lock)
    found = _one(settings, topic, letter)
    payload = decode(found.value, lookup)
    value = found.value or b""
    if as_json:
        more = {
            "headers": [[name, None if raw is None else _text(raw)] for name, raw in found.headers],
            "facts": found.facts,
            "key": None if found.key is None else _text(found.key),
            "payload": {"kind": payload.kind, "schema_id": payload.schema_id, "text": payload.text},
            "faults": payload.faults,
            "hex": value.hex(),
        }
        typer.echo(json.dumps(_facts(found) | more))
        return
    lines = [
        f"{found.place}  {_shown(found.time)}",
        f"stage {found.stage}: {found.reason}",
        found.message,
        *(["the value was too large for this topic: it is the digest of the record's"] if found.truncated else []),
        "",
        f"key: {'none' if found.key is None else _text(found.key)}",
        *(f"{name}: {'' if raw is None else _text(raw)}" for name, raw in found.headers),
        *(f"{name}: {fact}" for name, fact in found.facts.items()),
        "",
        f"{payload.kind}{'' if payload.schema_id is None else f', schema id {payload.schema_id}'}",
        *_cut(payload.text or "", most).splitlines(),
        *(f"! {fault}" for fault in payload.faults),
        "",
        *(hex_dump(value, most).splitlines() if value else []),
    ]
    for line in lines:
        typer.echo(_printable(line))


@dead_app.command()
def stats(
    topic: Topic,
    reason: Reason = None,
    stage: Stage = None,
    since: Since = None,
    until: Until = None,
    by: Annotated[Literal["hour", "day"] | None, typer.Option(help="Count each hour or day (UTC) by itself.")] = None,
    as_json: Json = False,
) -> None:
    """Counts by reason and stage, with the first and the last time."""
    groups = _grouped(_letters(topic, Filter(reason, stage, since, until)), by)
    total = sum(group["count"] for group in groups)
    if as_json:
        typer.echo(json.dumps({"total": total, "groups": groups}))
        return
    table = _table(*((by,) if by else ()), "reason", "stage", "first", "last")
    for title in ("count", "share"):
        table.add_column(title, no_wrap=True, justify="right")
    for g in groups:
        cells = g["reason"], g["stage"], g["first"][:19], g["last"][:19], f"{g['count']:,}", f"{g['share']:.1%}"
        table.add_row(*(Text(_printable(cell)) for cell in (*((g["bucket"],) if by else ()), *cells)))
    _print(table)
    typer.echo(f"{total:,} letters in {topic}")


@dead_app.command("replay")
def replay_letters(
    topic: Topic,
    reason: Reason = None,
    stage: Stage = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Send so many at the most.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Letters a second at the most.")] = None,
    patch: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Gets a penstock.dead.replay.Outgoing; gives the value to send, or None to leave the letter out.",
        ),
    ] = None,
    to: Annotated[str | None, typer.Option(help="Send to this topic in place of the origin's.")] = None,
    max_attempts: Annotated[
        int, typer.Option(min=1, help="A record that has died so often is not sent.")
    ] = MAX_ATTEMPTS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent; send nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Send the records of letters into the pipeline again, each once however often this is called."""
    function = None if patch is None else load_function(patch, "mends:amount")
    options = Options(to, function, rate, limit, max_attempts, dry_run)
    progress = Console(stderr=True)
    sent = 0

    def tell(report: Report) -> None:
        nonlocal sent
        sent = report.counts[SENT]
        if progress.is_terminal:
            progress.print(f"{sent:,} letters", end="\r")

    logging.getLogger("penstock").addHandler(logging.NullHandler())  # what the client logs, the error says
    try:
        report = replay(Settings(), topic, Filter(reason, stage, since, until), options, tell)
    except KeyboardInterrupt:
        verb = "would be replayed" if dry_run else "replayed"
        line = f"interrupted: {sent:,} letters {verb}. The same command goes on from there"
        typer.echo(json.dumps({"error": line, SENT: sent}) if as_json else f"penstock: {line}", err=not as_json)
        raise
    if as_json:
        left = [{"letter": _name(one.letter), "fate": one.fate, "why": one.why} for one in report.left]
        typer.echo(json.dumps({"dry_run": dry_run, SENT: 0, **report.counts, "left": left}))
        return
    for one in report.left:
        typer.echo(_printable(f"{_name(one.letter)} {one.fate}: {one.why}"))
    counts = report.counts.copy()
    sent = counts.pop(SENT, 0)
    verb = "would be replayed" if dry_run else "replayed"
    typer.echo(", ".join([f"{sent:,} letters {verb}", *(f"{n:,} {fate}" for fate, n in sorted(counts.items()))]))


def _letters(topic: str, chosen: Filter) -> Iterator[Letter]:
    pipeline_of(topic)
    return letters(Settings(), topic, chosen)


def _one(settings: Settings, topic: str, name: str) -> Letter:
    partition, _, offset = name.partition("@")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise TopicUnreadable(
            f"{name!r} names no letter. Write PARTITION@OFFSET, e.g. 0@17, as `penstock dead list` does"
        )
    reader = PlaceReader(settings)
    try:
        message = reader.read(topic, int(partition), int(offset))
    finally:
        reader.close()
    if message is None:
        raise TopicUnreadable(f"{topic}/{name} is not there. `penstock dead list {topic}` names those that are")
    return letter_of(message)


def _lookup(settings: Settings, plan: Path | None, lock: Path | None) -> Lookup | None:
    """Writers' schemas: of the lock, of the plan and then the registry, or of the registry alone."""
    if lock is not None:
        return LockRegistry.at(lock).schema
    if plan is not None:
        from penstock.worker import schema_lookup  # loads all that a worker needs

        return schema_lookup(Plan.load(plan), settings)
    return ConfluentRegistry.from_settings(settings).schema if settings.schema_registry_url else None


def _reasons(found: Iterable[Letter]) -> Counter[tuple[str, str]]:
    """How many there are of each stage and reason."""
    return Counter((letter.stage, letter.reason) for letter in found)


def _when_and_where(facts: dict[str, Any]) -> tuple[str, int, int]:
    partition, offset = map(int, facts["letter"].split("@"))
    return facts["time"], partition, offset


def _grouped(found: Iterable[Letter], by: str | None) -> list[dict[str, Any]]:
    """Largest first; by bucket, then largest first."""
    times: dict[tuple[str, str, str], list[Any]] = defaultdict(lambda: [0, datetime.max, datetime.min])
    length = {"hour": 13, "day": 10}.get(by or "", 0)
    for letter in found:
        entry = times[_shown(letter.time)[:length], letter.reason, letter.stage]
        moment = letter.time.replace(tzinfo=None)
        entry[:] = entry[0] + 1, min(entry[1], moment), max(entry[2], moment)
    total = sum(count for count, _, _ in times.values())
    groups = [
        {
            **({"bucket": bucket} if by else {}),
            "reason": reason,
            "stage": stage,
            "count": count,
            "share": count / total,
            "first": _shown(first),
            "last": _shown(last),
        }
        for (bucket, reason, stage), (count, first, last) in times.items()
    ]
    return sorted(groups, key=lambda g: (g.get("bucket", ""), -g["count"], g["reason"], g["stage"]))


def _facts(letter: Letter) -> dict[str, Any]:
    return {
        "letter": _name(letter.place),
        "time": _shown(letter.time),
        "stage": letter.stage,
        "reason": letter.reason,
        "message": letter.message,
        "read": None if letter.read is None else str(letter.read),
        "origin": None if letter.origin is None else str(letter.origin),
        "size": letter.size,
        "truncated": letter.truncated,
        "attempt": letter.attempt,
    }


def _name(place: Any) -> str:
    return f"{place.partition}@{place.offset}"


def _shown(time: datetime) -> str:
    return time.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def _cut(text: str, most: int) -> str:
    if (left := len(text) - most) <= 0:
        return text
    return f"{text[:most]}\n… and {left:,} characters more, see --bytes and --json"


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


def _printable(text: str) -> str:
    """What is in a letter must not steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=True)
    return table


def _print(table: Table) -> None:
    console = Console()
    # off a terminal nobody's lines are cut at 80 columns
    (console if console.is_terminal else Console(width=200)).print(table)
