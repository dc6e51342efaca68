"""Penstock turns Kafka topics into a running ML system: what a pipeline's author imports."""

from penstock.pipeline import Label, Model, Monitors, Pipeline, When

__all__ = ["Label", "Model", "Monitors", "Pipeline", "When"]
