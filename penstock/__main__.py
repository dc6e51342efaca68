"""The command ``penstock``, and ``python -m penstock``: how the supervisor starts workers with its own interpreter.
Ctrl-C ends it quietly from here on, so this module imports nothing that takes time before it has seen to that.
"""

import sys

from penstock import interrupts


def main() -> None:
    """The entry point."""
    interrupts.leave_at_once()
    from penstock.cli.app import app

    try:
        app(prog_name="penstock")
    except KeyboardInterrupt:
        sys.exit(interrupts.INTERRUPTED)


if __name__ == "__main__":
    main()
