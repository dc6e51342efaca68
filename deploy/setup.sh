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
    penstock model train "$PIPELINE" --plan "$plan"
    model=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["model"]["name"])' "$plan")
    newest=$(penstock model list "$model" --json | python -c 'import json, sys; print(next(iter(json.load(sys.stdin).values()))[-1])')
    penstock model promote "$plan" "$newest" --author setup --reason "the first version"
fi
