"""The entry point of `autotl` and of `python -m autotl`."""

import sys


def main() -> None:
    """Run the command; Ctrl-C ends it quietly, even during its imports."""
    try:
        from autotl.cli.main import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
