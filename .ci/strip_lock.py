"""Takes the download addresses out of uv.lock, so that it holds names, versions and hashes only and installs from
whatever index the machine's own client is set up for. ``make lock`` runs it after ``uv lock``; see
docs/adr/0004-a-lock-without-addresses.md. Usage: strip_lock.py uv.lock
"""

import re
import sys
from pathlib import Path


def strip(text: str) -> str:
    """``url = "scheme://host/…/name.whl"`` becomes ``filename = "name.whl"``, every registry the word ``index``."""
    text = re.sub(r'url = "https?://[^"]*/([^"/]+)"', r'filename = "\1"', text)
    text = re.sub(r", size = \d+", "", text)  # some indexes tell it and some do not
    return re.sub(r'registry = "https?://[^"]*"', 'registry = "index"', text)


if __name__ == "__main__":
    lock = Path(sys.argv[1])
    stripped = strip(lock.read_text())
    if "://" in stripped:
        sys.exit(f"{lock}: an address is left after stripping; teach {__file__} its form")
    lock.write_text(stripped)
