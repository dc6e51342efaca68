"""``python -m penstock`` is the command ``penstock``: how the supervisor starts workers with its own interpreter."""

from penstock.cli.app import app

app(prog_name="penstock")
