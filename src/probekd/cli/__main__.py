"""``python -m probekd.cli``."""

from probekd.cli import main

main()
