"""`python -m expunge`."""

from expunge.cli.start import main

main()
