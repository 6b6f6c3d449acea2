"""The command line: `rank-explorer COMMAND`, or `python -m lowrank_core COMMAND`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command that was typed.

    Ctrl-C while that is imported, which takes seconds, ends it at once: Python would show where it was in PyTorch;
    NumPy, interrupted as it is imported, even loses itself for ten seconds. After that it raises KeyboardInterrupt, so
    that what was begun is tidied up. A process that was started to ignore it still does.
    """
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lowrank_core.commands import cli
    from lowrank_core.running.own_process import ending_with_its_work, hush_libraries

    cli.load(next((word for word in sys.argv[1:] if not word.startswith("-")), None))
    signal.signal(signal.SIGINT, usual)
    hush_libraries(alone=True)
    with ending_with_its_work():
        cli()


if __name__ == "__main__":
    main()
