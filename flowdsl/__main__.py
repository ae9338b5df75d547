"""`python -m flowdsl`."""

from flowdsl.cli import main

main()
