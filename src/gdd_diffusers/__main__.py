"""Run the `gdd` command."""

import sys


def main():
    try:
        from .app.cli import app  # takes long enough to be stopped by Ctrl-C

        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
