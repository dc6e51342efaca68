"""Writes the generated files below a folder, ``deploy`` unless told."""

import sys
from pathlib import Path

from penstock.dashboards.files import files

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "deploy")
    for path, text in files().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
