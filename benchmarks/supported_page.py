"""The page "Supported networks" of the documentation, from the results of `supported_networks.py`."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from verdicts import Verdict

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks" / "supported-networks.md"
_COLUMNS = ("tried", "built", "traced", "planned", "runs", "exact", "saved")
_SOURCES = {
    "torchvision": "Every builder for classification, segmentation, detection, video and optical flow.",
    "timm": "From every module of timm, the network with the fewest parameters.",
    "transformers": "One tiny configuration of each model type that the auto classes list, causal language models first.",
    "diffusers": "Small configurations of denoisers and autoencoders.",
}
_ERROR_LENGTH = 160

_TOP = """# Supported networks

`benchmarks/supported_networks.py` →
[`results/supported_networks.json`](../../benchmarks/results/supported_networks.json). Published
network definitions with random weights are pruned to {target} of their MACs by weight magnitude. Each
network runs in its own process, with {seconds:.0f} s of CPU time and {gib:.0f} GiB of memory. The benchmark makes
small configurations and inputs. proxyprune has no code for any single network, and every network is
pruned by the same call, `pp.prune(model, inputs, target={target}, scorer="magnitude")`.

<!-- not run: takes hours -->
```console
$ make zoo
```

{coverage}

## Totals

{totals}

A network counts in a column if it passed that check. The checks, in order:

- **built**: the definition can be instantiated and runs on the example inputs. A network that fails
  here fails without proxyprune.
- **traced**: proxyprune can trace the network.
- **planned**: it is pruned to {target} of the MACs at the first attempt.
- **runs**: the pruned network runs, and its outputs are finite where those of the unpruned one are.
- **exact**: the MACs of the plan equal those that `FlopCounterMode` counts on the pruned network,
  with the math attention kernel. A network with an op that has no cost rule counts as not exact.
- **saved**: if it is saved and loaded into a network with other weights, its outputs are identical,
  bit for bit.

{greedy}

torch-pruning {peer_version} is tried on the same networks: `MagnitudePruner` with a ratio of 0.25, the
last layer ignored, and the number of attention heads found from the names of attributes. Its own
examples prune more networks than this, with code for each of them. "Fails" means that it raises an
error, that the pruned network does not run, or that no channel was removed. An empty cell means
that it was not tried.{peer_note}

## Failures by cause

{causes}
"""


def write_page(results: Mapping[str, Any]) -> None:
    """Write the page from the content of the JSON file."""
    verdicts = [Verdict.from_dict(found) for found in results["networks"]]
    top = _TOP.format(
        target=results["target"],
        seconds=results["limits"]["seconds"],
        gib=results["limits"]["gib"],
        coverage=_coverage(results),
        totals=_totals(results["totals"]),
        greedy=_further(results["totals"]),
        peer_version=results["versions"]["torch-pruning"],
        peer_note=f" {results['peer_note']}" if "peer_note" in results else "",
        causes=_causes(verdicts),
    )
    sections = [_section(name, [verdict for verdict in verdicts if verdict.set == name]) for name in results["totals"]]
    PAGE.write_text("\n".join((top, *sections)).rstrip() + "\n", encoding="utf-8")


def _coverage(results: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items() if version and name != "proxyprune")
    tried = sum(counts["tried"] for counts in results["totals"].values())
    parts = [f"{counts['tried']} of {results['available'][name]} of {name}" for name, counts in results["totals"].items()]
    part = "" if results["whole"] else f" **The run is not complete.** Networks tried: {', '.join(parts)}."
    return _wrapped(
        f"Measured at commit {results['commit']} on {tried} networks, with {versions}. Seconds are the wall time of `pp.prune` on one "
        f"core of a machine that was shared with other jobs.{part}"
    )


def _totals(totals: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        f"| set | {' | '.join(_COLUMNS)} | all checks | torch-pruning |",
        "|---|" + "---|" * (len(_COLUMNS) + 2),
    ]
    for name, counts in totals.items():
        peer = f"{counts['peer']} of {counts['peer_tried']}" if counts["peer_tried"] else ""
        rows.append(f"| {name} | {' | '.join(str(counts[column]) for column in _COLUMNS)} | {counts['clean']} | {peer} |")
    return "\n".join(rows)


def _further(totals: Mapping[str, Mapping[str, Any]]) -> str:
    def summed(name: str) -> int:
        return sum(counts[name] for counts in totals.values())

    return _wrapped(
        f"Two more checks apply to some networks. Of {summed('causal')} pruned causal language models, {summed('greedy')} generate the "
        "same greedy tokens with a dynamic cache, with a static cache and without a cache, as far as the unpruned network supports these. "
        f"Of {summed('trainable')} networks whose unpruned form runs a training step on the example inputs, "
        f'{summed("trains")} run one after pruning. "All checks" counts networks that passed every check that applies to them.'
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _causes(verdicts: Sequence[Verdict]) -> str:
    counted = Counter((verdict.failed[0], _cause(verdict)) for verdict in verdicts if verdict.failed and verdict.failed[0] != "built")
    if not counted:
        return "None."
    rows = ["| networks | check | error | for example |", "|---|---|---|---|"]
    for (check, cause), count in counted.most_common():
        example = next(verdict.name for verdict in verdicts if verdict.failed[:1] == (check,) and _cause(verdict) == cause)
        rows.append(f"| {count} | {check} | {_cell(cause)} | {example} |")
    return "\n".join(rows)


def _cause(verdict: Verdict) -> str:
    """Return the error without what is particular to one network: names in quotes and numbers."""
    return cause_of(verdict.error or "no message")


def cause_of(error: str) -> str:
    """Replace quoted names and numbers by placeholders."""
    plain = re.sub(r"'[^']*'", "'...'", error)
    plain = re.sub(r"\([A-Z]\w+\)", "(...)", plain)
    return re.sub(r"\b\d[\d,.]*\b", "N", plain)[:_ERROR_LENGTH]


def _section(name: str, verdicts: Sequence[Verdict]) -> str:
    rows = ["| network | verdict | seconds | torch-pruning |", "|---|---|---|---|", *_rows(verdicts)]
    return f"## {name}\n\n{_SOURCES.get(name, '')}\n\n" + "\n".join(rows) + "\n"


def _rows(verdicts: Sequence[Verdict]) -> Iterator[str]:
    for verdict in verdicts:
        seconds = "" if verdict.seconds is None else f"{verdict.seconds:.1f}"
        yield f"| {verdict.name} | {_outcome(verdict)} | {seconds} | {_peer(verdict)} |"


def _outcome(verdict: Verdict) -> str:
    if not verdict.failed:
        return "supported"
    error = _cell((verdict.error or "")[:_ERROR_LENGTH])
    if verdict.best_share is not None:
        return f"pruned to {verdict.best_share:.2f} at most: {error}"
    return f"not {', '.join(verdict.failed)}: {error}"


def _peer(verdict: Verdict) -> str:
    if verdict.peer is None:
        return ""
    return "runs" if verdict.peer else f"fails: {_cell((verdict.peer_error or '')[:60])}"


def _cell(text: str) -> str:
    """Return text that a Markdown table can hold: no pipes, no code spans, no HTML, no links."""
    for found, put in (("|", "/"), ("`", ""), ("<", "&lt;"), (">", "&gt;"), ("[", "("), ("]", ")"), ("*", "×"), ("_", "\\_"), ("\n", " ")):
        text = text.replace(found, put)
    return text
