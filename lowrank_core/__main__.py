"""The command line: `rank-explorer COMMAND`, or `python -m lowrank_core COMMAND`."""

from __future__ import annotations

import os
import signal
import sys


def stand_in_for_closed() -> None:
    """Open the null device where standard input, output or error is closed, as by `>&-`.

    The next file that is opened would be taken for it, and what libraries print would end up in what is written.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one


def main() -> None:
    """Run the command that was typed.

    SIGTERM, and SIGHUP of a terminal that is closed, end it as Ctrl-C does, with what was begun tidied up.

    Ctrl-C while that is imported, which takes seconds, ends it at once: Python would show where it was in PyTorch;
    NumPy, interrupted as it is imported, even loses itself for ten seconds. After that it raises KeyboardInterrupt, so
    that what was begun is tidied up. A process that was started to ignore it still does.
    """
    stand_in_for_closed()
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lowrank_core.commands import cli
    from lowrank_core.running.own_process import ending_with_its_work, hush_libraries

    cli.load(next((word for word in sys.argv[1:] if not word.startswith("-")), None))
    signal.signal(signal.SIGINT, usual)
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    hush_libraries(alone=True)
    with ending_with_its_work():
        cli()


if __name__ == "__main__":
    main()
