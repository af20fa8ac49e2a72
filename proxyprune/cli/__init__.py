"""The command line: `proxyprune describe | score | prune | search | compare | report | diffusion | scorers | doctor`.

Nothing heavy is imported until a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

from proxyprune.cli.app import main

__all__ = ["main"]
