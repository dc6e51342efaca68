"""Penstock turns Kafka topics into a running ML system: what a pipeline's author imports.

The names are loaded when they are asked for: every command passes through here, before it can say what Ctrl-C means.
"""

TYPE_CHECKING = False
"""As ``typing`` has it, which alone takes as long as all the rest before Ctrl-C is seen to."""
if TYPE_CHECKING:
    from penstock.pipeline import Label, Model, Monitors, Pipeline, When

__all__ = ["Label", "Model", "Monitors", "Pipeline", "When"]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("penstock.pipeline"), name)
