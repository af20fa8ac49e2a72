"""The group of all commands."""

from __future__ import annotations

import click

from proxyprune.cli.compare import compare
from proxyprune.cli.describe import describe
from proxyprune.cli.diffusion import diffusion
from proxyprune.cli.doctor import doctor
from proxyprune.cli.prune import prune
from proxyprune.cli.report import report
from proxyprune.cli.score import score
from proxyprune.cli.scorers import scorers
from proxyprune.cli.search import search


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="proxyprune")
def main() -> None:
    """Prune any PyTorch network to a compute budget, and never break it.

    Start with: proxyprune describe --model FILE.py
    """


for command in (describe, score, prune, search, compare, report, diffusion, scorers, doctor):
    main.add_command(command)
