"""Where the command starts: signals are heeded before anything that takes time is imported."""

from expunge.cli.signals import Interrupts, heed_signals, ignore_signals


def main() -> None:
    """Run the command."""
    try:
        heed_signals()
        from expunge.cli.main import main as run
    except KeyboardInterrupt:
        ignore_signals()
        raise SystemExit(_end_interrupted()) from None
    run()


def _end_interrupted() -> int:
    import sys

    sys.stderr.write(f"expunge: interrupted; {Interrupts.left}.\n")
    return 130
