"""``python -m penstock.local.train_step PIPELINE PLAN MODELS``: trains a pipeline's model if it is not trained yet, by
the ``train`` beside it. The last line that it prints is the version.
"""

import sys
from importlib import import_module
from pathlib import Path

from penstock.models.manifest import ModelError
from penstock.plan import Plan, PlanError


def main(source: str, plan_path: str, models_url: str) -> None:
    """Print what is being done, then the version, or in one line why there is none: exit status 1."""
    sys.path.insert(0, str(Path.cwd()))
    train = import_module(f"{source.partition(':')[0].rpartition('.')[0]}.train")
    try:
        version = train.train(models_url, Plan.load(Path(plan_path)), lambda line: print(line, flush=True))  # noqa: T201
    except (ModelError, PlanError, OSError) as error:
        raise SystemExit(str(error)) from None
    sys.stdout.write(version + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
