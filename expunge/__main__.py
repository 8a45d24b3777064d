"""`python -m expunge`."""

from expunge.cli.main import main

main()
