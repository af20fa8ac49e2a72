"""The group of all commands."""

from __future__ import annotations

import click

from proxyprune.cli.commands.compare import compare
from proxyprune.cli.commands.describe import describe
from proxyprune.cli.commands.diffusion import diffusion
from proxyprune.cli.commands.doctor import doctor
from proxyprune.cli.commands.mcp import mcp
from proxyprune.cli.commands.prune import prune
from proxyprune.cli.commands.report import report
from proxyprune.cli.commands.score import score
from proxyprune.cli.commands.scorers import scorers
from proxyprune.cli.commands.search import search
from proxyprune.cli.garbage import collect_less_often


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="proxyprune")
def main() -> None:
    """Prune any PyTorch network to a compute budget, and never break it.

    Start with: proxyprune describe --model FILE.py
    """
    collect_less_often()


for command in (describe, score, prune, search, compare, mcp, report, diffusion, scorers, doctor):
    main.add_command(command)
