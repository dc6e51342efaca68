#!/bin/sh
# What a pipeline needs before its workers start: schemas in the registry, the plan, the topics, and a model that serves.
# Safe to run again: what is there stays.
set -eu
: "${PIPELINE:?the import string of the pipeline, e.g. pipelines.flights.pipeline:pipeline}"
plan=/plan/plan.json

folder=$(dirname "$(printf %s "$PIPELINE" | cut -d: -f1 | tr . /)")
if [ -n "${PENSTOCK_SCHEMA_REGISTRY_URL:-}" ]; then
    penstock schemas register "$folder"
fi
penstock plan "$PIPELINE" --out "$plan"
penstock topics "$plan" --create
if ! penstock model status "$plan"; then
    trained=$(penstock model train "$PIPELINE" --plan "$plan" --json) || { echo "$trained" >&2; exit 1; }
    version=$(echo "$trained" | python -c 'import json, sys; print(json.load(sys.stdin)["version"])')
    penstock model promote "$plan" "$version" --author setup --reason "the first version"
fi
