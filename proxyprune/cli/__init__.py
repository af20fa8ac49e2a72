"""The command line: `proxyprune describe | score | prune | search | compare | report | diffusion | scorers | doctor`.

Nothing heavy is imported until a command runs, so that `--help` answers at once. A file in `commands` declares arguments and help; when
the command runs it imports the file in `actions` that does the work. click's lazy group would not do: it imports a command's file for its
help as well.
"""

from __future__ import annotations

from proxyprune.cli.app import main

__all__ = ["main"]
