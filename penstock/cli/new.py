"""``penstock new NAME``: a working small pipeline to change into one's own. The template is text with ``NAME`` in it,
so that it is not taken for a module of Penstock.
"""

import keyword
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

SUFFIX = ".tmpl"
HIDDEN = {"feastignore": ".feastignore"}


def new(
    name: Annotated[
        str, typer.Argument(help="Of the pipeline and its folder: lower case letters, digits, underscores.")
    ],
    directory: Annotated[
        Path, typer.Option("--dir", help="Folder to make it in; the current one if not given.")
    ] = Path(),
) -> None:
    """Make a small working pipeline: schemas, features, functions, training."""
    target = make_pipeline(name, directory)
    typer.echo(f"made {target}")
    if str(directory.resolve()) not in sys.path:
        sys.path.insert(0, str(directory.resolve()))
    try:
        from penstock.compiling import compile_pipeline
    except ModuleNotFoundError as error:
        if error.name != "feast":
            raise
        typer.echo("feast is not installed, so its schemas are not locked yet. Install penstock[feast], then:")
        typer.echo(f"  penstock plan {name}.pipeline:pipeline --extend-lock")
        return
    plan = compile_pipeline(f"{name}.pipeline:pipeline", lock="extend")
    typer.echo(f"locked the schemas of {len(plan.topics)} topics in {target / 'schemas.lock'}")
    typer.echo("next" + ("" if directory == Path() else f", in {directory}") + ":")
    typer.echo(f"  penstock check {name}.pipeline:pipeline")
    typer.echo(f"  penstock model train {name}.pipeline:pipeline  # a first version of the model; needs onnx")
    typer.echo(f"  penstock dev {name}.pipeline:pipeline  # serves it, where nothing serves yet")


def make_pipeline(name: str, directory: Path) -> Path:
    """Writes the template's files and returns their folder. Raises ``PlanError`` for a bad name or a folder that is not
    empty."""
    from pydantic import TypeAdapter, ValidationError

    from penstock.pipeline import Name
    from penstock.plan import PlanError

    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise PlanError(f"{name!r} is no name of a pipeline. Use lower case letters, digits and underscores") from None
    if keyword.iskeyword(name):
        raise PlanError(f"{name!r} is a word of Python's own, so no module can be named so. Choose another name")
    if name in sys.stdlib_module_names or name == "penstock":
        raise PlanError(f"{name!r} is the name of a module that Python needs. Choose another")
    target = directory / name
    taken = find_spec(name)
    # a folder without modules, such as an empty one that waits for the pipeline, has no origin
    if taken is not None and taken.origin is not None and Path(taken.origin).parent.resolve() != target.resolve():
        raise PlanError(f"{name!r} is an installed package, which the folder would hide. Choose another name")
    if target.is_dir() and any(target.iterdir()):
        raise PlanError(f"{target} is not empty. Choose another name or folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlanError(f"{target} cannot be made: {error.strerror}. Choose another folder with --dir") from None
    for file in files("penstock.cli").joinpath("template").iterdir():
        if file.name.endswith(SUFFIX):
            plain = file.name.removesuffix(SUFFIX)
            (target / HIDDEN.get(plain, plain)).write_text(file.read_text("utf-8").replace("NAME", name), "utf-8")
    return target
