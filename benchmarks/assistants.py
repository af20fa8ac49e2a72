"""Measure what the tools give an assistant: scripted assistants over a real MCP client, on the three networks of fashion.py.

Each assistant gets the same number of measurements, the same one-shot plan (Taylor) and the same treatment before each measurement:
a short recovery. It sees what the tools answer and nothing else. The network of the plan that it applies is judged, after
the same treatment, on a third split that nothing has seen.

    greedy       raises or lowers the importance of one block at a time, the most expensive first, and keeps what lowers the loss;
                 where neither direction does, its next steps are half as large
    random       draws the importance of every block, and applies the best plan that it measured
    adversarial  asks for plans above the budget, names outside of the workspace and the worst plan that it can find, and applies that

A session is a folder in benchmarks/.cache: a killed run goes on where it stopped.

    OMP_NUM_THREADS=1 python benchmarks/assistants.py
    OMP_NUM_THREADS=1 python benchmarks/assistants.py --networks unet --seeds 0 --measurements 6
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import torch
from common import environment, print_table, save
from fashion import CACHE, SUBJECTS, Subject, batches_of, trained
from mcp import Client

from proxyprune import Recovery
from proxyprune.assistant import Bounds, PruningTask, Session, make_server
from proxyprune.assistant.bounds import Deadline
from proxyprune.assistant.treatment import Treatment
from proxyprune.comparing.values import Spread
from proxyprune.measuring.held_out import Data, held_out_loss
from proxyprune.planning.plan import PrunePlan
from proxyprune.support.seeds import derived_seed

TARGET = 0.4
SEEDS = (0, 1, 2)
MEASUREMENTS = 10
RECOVERY_STEPS = 30
SECONDS_PER_CALL = 3600.0
FACTOR = 2.0
"""Factor of a channel's score when the assistant's score of its block rises by a half."""
SMALLEST_STEP = 1 / 32
"""Changes of importance below this leave most plans as they are."""
ONE_SHOT = "one-shot taylor"
COLUMNS = ("network", "assistant", "loss", "gain", "lowest gain", "seeds")


@dataclass
class Tools:
    """The tools as an assistant sees them: JSON over the protocol."""

    client: Client

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer; an error has the key "error"."""
        result = await self.client.call_tool(tool, arguments)
        answer: dict[str, Any] = json.loads(result.content[0].text)  # type: ignore[union-attr]  # the tools answer with text only
        return answer

    async def measured(self, scores: Mapping[str, float]) -> tuple[str, float] | None:
        """Plan with own scores and measure; the name of the plan and its loss, or None when the measurements are spent."""
        spread = statistics.pstdev(scores.values())
        ranking = await self.call("score", scores=dict(scores), strength=min(5.0, math.log(FACTOR) * spread / 0.5))
        plan = await self.call("plan", ranking=ranking["ranking"])
        loss = await self.loss(plan["plan"])
        return None if loss is None else (plan["plan"], loss)

    async def loss(self, plan: str) -> float | None:
        """Loss after the treatment, infinite if it is not finite; None when the measurements are spent."""
        answer = await self.call("measure", plan=plan, recovery=True)
        if answer.get("error") == "CallLimitError":
            return None
        return math.inf if answer.get("loss") is None else float(answer["loss"])


async def blocks_by_cost(tools: Tools) -> list[str]:
    """Ids of the blocks that channels can be cut in, the most expensive first."""
    names = list((await tools.call("score", scorer="magnitude"))["scores"])
    blocks = [await tools.call("describe", block=name) for name in names]
    return [block["id"] for block in sorted(blocks, key=lambda block: -block["macs"]) if block["channel_groups"]]


async def greedy(tools: Tools, seed: int) -> str:
    """Change one block at a time, and keep what helps; halve the step when neither direction does."""
    blocks = await blocks_by_cost(tools)
    scores, best, lowest, step = dict.fromkeys(blocks, 0.5), "p0", await tools.loss("p0"), 0.5
    for block in itertools.cycle(blocks):
        for value in (scores[block] + step, scores[block] - step):
            if not 0.0 <= value <= 1.0:
                continue
            found = await tools.measured(scores | {block: value})
            if found is None:
                return best
            if lowest is None or found[1] < lowest:
                scores, (best, lowest) = scores | {block: value}, found
                break
        else:
            step /= 2
        if step < SMALLEST_STEP:
            break
    return best


async def drawn(tools: Tools, seed: int) -> str:
    """Draw all scores, again and again."""
    draw = random.Random(derived_seed(seed, "random assistant"))
    blocks = await blocks_by_cost(tools)
    losses = {"p0": await tools.loss("p0") or math.inf}
    while (found := await tools.measured({block: draw.choice((0.0, 0.5, 1.0)) for block in blocks})) is not None:
        losses[found[0]] = found[1]
    return min(losses, key=lambda plan: losses[plan])


async def adversarial(tools: Tools, seed: int) -> str:
    """Try to end with something bad, in every way that the tools leave."""
    blocks = await blocks_by_cost(tools)
    for target in (0.99, 10**15, "400%"):
        assert "error" in await tools.call("plan", target=target)
    losses = {"p0": await tools.loss("p0") or math.inf}
    for block in blocks:
        found = await tools.measured({name: float(name == block) for name in blocks})
        if found is None:
            break
        losses[found[0]] = found[1]
    worst = max(losses, key=lambda plan: losses[plan])
    for name in ("../out", "/tmp/out", "a/b"):
        assert "error" in await tools.call("apply", plan=worst, name=name)
    return worst


ASSISTANTS = {"greedy": greedy, "random": drawn, "adversarial": adversarial}


async def applied(session: Session, name: str, seed: int) -> str:
    """Let an assistant drive, and return the plan of the network that was saved: the one-shot plan if its own is rejected."""
    async with Client(make_server(lambda: session)) as client:
        tools = Tools(client)
        chosen = await ASSISTANTS[name](tools, seed)
        for plan in dict.fromkeys((chosen, "p0")):
            answer = await tools.call("apply", plan=plan, name=f"{name}-{plan}", recovery=True)
            if "error" not in answer or "in the workspace already" in answer["message"]:
                return plan
    raise SystemExit(f"{name} saved nothing: {answer}")


def data_for(subject: Subject, seed: int) -> tuple[Data, Data]:
    """Return data of a session, and data of the final judgement: the same batches to learn from, other batches to judge by."""
    learning = tuple(batches_of(subject, "train", 50_000 + 1024 * seed, 16, 32, seed=10 + seed))
    held_out = tuple(batches_of(subject, "train", 56_000 + 1024 * seed, 8, 128, seed=20 + seed))
    untouched = tuple(batches_of(subject, "t10k", 0, 8, 256, seed=30))
    return Data(learning, held_out, subject.loss_fn), Data(learning, untouched, subject.loss_fn)


def session_folder(subject: Subject, assistant: str, measurements: int, seed: int) -> Path:
    """Folder of one session."""
    return CACHE / f"assistant_{subject.name}_{assistant}_{measurements}_{seed}"


def run(subject: Subject, assistant: str, seed: int, measurements: int) -> list[dict[str, Any]]:
    """One session, and the judgement of its one-shot plan and of the plan that was applied."""
    folder = session_folder(subject, assistant, measurements, seed)
    judged = folder / "judged.json"
    if judged.is_file():
        known: list[dict[str, Any]] = json.loads(judged.read_text(encoding="utf-8"))
        return known
    data, final = data_for(subject, seed)
    task = PruningTask.of(
        trained(subject),
        subject.example_inputs,
        TARGET,
        recovery=Recovery(RECOVERY_STEPS, subject.recovery_rate),
        seed=seed,
        batches=data.batches,
        held_out=data.held_out,
        loss_fn=data.loss_fn,
    )
    with Session.open(task, folder, Bounds(measurements=measurements, seconds_per_call=SECONDS_PER_CALL)) as session:
        chosen = anyio.run(applied, session, assistant, seed)
        calls = session.calls
    rows = []
    for name, plan in ((ONE_SHOT, "p0"), (assistant, chosen)):
        made = PrunePlan.from_json(folder / "plans" / f"{plan}.json")
        result = task.built(made, task.ranked(task.start, deadline()), treatment=Treatment(recovery=True), deadline=deadline())
        loss = held_out_loss(result.model, final, seed=0)
        rows.append({"network": subject.name, "assistant": name, "seed": seed, "macs": made.macs, "loss": loss, "calls": calls})
    judged.write_text(json.dumps(rows), encoding="utf-8")
    return rows


def deadline() -> Deadline:
    """Return the time for one call, from now on."""
    return Deadline.after(SECONDS_PER_CALL)


def summary(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each network and assistant; gains are paired with the one-shot plan of the same seed."""
    rows = []
    for network in dict.fromkeys(run["network"] for run in runs):
        of_network = [run for run in runs if run["network"] == network]
        one_shot = {run["seed"]: run["loss"] for run in of_network if run["assistant"] == ONE_SHOT}
        for assistant in dict.fromkeys(run["assistant"] for run in of_network):
            own = {run["seed"]: run["loss"] for run in of_network if run["assistant"] == assistant}
            loss, gain = Spread.of(own.values()), Spread.of(one_shot[seed] - value for seed, value in own.items())
            if loss is not None and gain is not None:
                values = (network, assistant, round(loss.mean, 4), round(gain.mean, 4), round(gain.low, 4), len(own))
                rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def main() -> None:
    """Run what is asked for, print a table, and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="+", default=[subject.name for subject in SUBJECTS])
    parser.add_argument("--assistants", nargs="+", default=list(ASSISTANTS), choices=list(ASSISTANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--measurements", type=int, default=MEASUREMENTS)
    parser.add_argument("--save", action="store_true", help="Write benchmarks/results/assistants.json.")
    parser.add_argument("--finished", action="store_true", help="Leave out sessions that did not finish; run none.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    for subject in (subject for subject in SUBJECTS if subject.name in options.networks):
        for seed in options.seeds:
            for assistant in options.assistants:
                if options.finished and not (session_folder(subject, assistant, options.measurements, seed) / "judged.json").is_file():
                    continue
                found = run(subject, assistant, seed, options.measurements)
                runs += [row for row in found if row not in runs and not (row["assistant"] == ONE_SHOT and _known(runs, row))]
                print(json.dumps(found), flush=True)
    print_table(f"Assistants, {TARGET} of the MACs, {options.measurements} measurements", COLUMNS, summary(runs))
    if options.save:
        save("assistants", {"environment": environment(), "measurements": options.measurements, "runs": runs, "summary": summary(runs)})


def _known(runs: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> bool:
    """Return True if the one-shot plan of a network and seed has a row already."""
    return any(all(run[key] == row[key] for key in ("network", "assistant", "seed")) for run in runs)


if __name__ == "__main__":
    main()
