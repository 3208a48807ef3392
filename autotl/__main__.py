"""Where a process begins, as `autotl` and as `python -m autotl`."""

import sys


def main() -> None:
    """The command; Ctrl-C ends it quietly while Python still imports what it consists of."""
    try:
        from autotl.cli.main import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
