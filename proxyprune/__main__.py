"""`python -m proxyprune` is the command line, for environments whose scripts are not on the path."""

from __future__ import annotations

from proxyprune.cli import main

main(prog_name="proxyprune")
