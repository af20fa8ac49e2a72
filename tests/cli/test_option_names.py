"""Options have the same names in Python and on the command line; each exception is listed here with its reason."""

from __future__ import annotations

import dataclasses
import inspect

import click
import pytest

import proxyprune as pp
from proxyprune.cli import main
from proxyprune.cli.options.llm import LLMOptions
from proxyprune.comparing.run_comparison import CompareKeywords
from proxyprune.proxy import LLMSettings
from proxyprune.pruning.prune import PruneKeywords
from proxyprune.searching.run_search import SearchKeywords

FUNCTIONS = {"prune": (pp.prune, PruneKeywords), "search": (pp.search, SearchKeywords), "compare": (pp.compare, CompareKeywords)}

COMMAND_ONLY = {
    **dict.fromkeys(("weights", "fake_weights", "traceback", "as_json", "ids"), "belongs to a process"),
    **dict.fromkeys(
        ("ranking", "plan", "plan_only", "out", "plot", "save_pretrained", "onnx", "lora", "lora_prefix"),
        "a file that another function reads or writes",
    ),
    **dict.fromkeys(("timed", "time_batch", "time_threads", "time_dtype", "time_compiled", "time_repeats"), "fields of timing"),
    **dict.fromkeys(("recovery_steps", "learning_rate"), "fields of recovery"),
    "ask_widths": "a field of the proposing language model's settings",
    "writer": "an argument of the formula proposer",
}
PYTHON_ONLY = {
    **dict.fromkeys(("example_inputs", "also", "batches", "loss_fn", "held_out", "training_loss_fn", "quality"), "in the model file"),
    **dict.fromkeys(("progress", "inplace", "brief"), "objects of a program"),
    **dict.fromkeys(("timing", "recovery"), "objects whose fields are options"),
}
COMPARE = {
    "seed": "one seed of a comparison is one of `seeds`, and the model file needs one",
    "peer": "repeatable, and `peers` in Python",
    "peers": "as above",
    "cases": "made of --target and --mode",
    "target": "part of `cases`",
    "mode": "part of `cases`",
}
LLM = {
    "llm_model": "`model`; --model names the model file",
    "dry_run": "a method, `preview`",
    "no_statistics": "statistics=()",
}
LLM_PYTHON = {
    "model": "--llm-model",
    "observer": "an object of a program",
    "ask_widths": "an option of search, which alone takes widths",
    **dict.fromkeys(("centre", "concurrency", "retries", "backoff_seconds", "max_retry_after_seconds"), "rarely changed"),
}

llm_names = {entry.name for entry in dataclasses.fields(LLMOptions)}


def options_of(command: str) -> dict[str, click.Option]:
    return {str(option.name): option for option in main.commands[command].params if isinstance(option, click.Option)}


def names_of(command: str) -> set[str]:
    function, keywords = FUNCTIONS[command]
    names = set(inspect.signature(function).parameters) | set(keywords.__annotations__)
    for base in keywords.__mro__ if hasattr(keywords, "__mro__") else ():
        names |= set(getattr(base, "__annotations__", {}))
    return names - {"keywords"}


@pytest.mark.parametrize("command", FUNCTIONS)
def test_functions_and_commands_have_the_same_options(command):
    """Every option of a command is an argument of its function, and the other way round, with the exceptions above."""
    exceptions = COMPARE if command == "compare" else {}
    typed, written = set(options_of(command)) - llm_names, names_of(command)
    assert sorted(typed - written - COMMAND_ONLY.keys() - exceptions.keys()) == []
    assert sorted(written - typed - PYTHON_ONLY.keys() - exceptions.keys()) == []


@pytest.mark.parametrize("command", ["score", "prune", "search"])
def test_options_of_language_models_are_fields_of_their_settings(command):
    """The same names, with the exceptions above; every command takes all of them."""
    settings = {entry.name for entry in dataclasses.fields(LLMSettings)}
    assert sorted(llm_names - options_of(command).keys()) == []
    assert sorted(llm_names - settings - LLM.keys()) == []
    assert sorted(settings - llm_names - LLM_PYTHON.keys()) == []


@pytest.mark.parametrize("command", sorted({*FUNCTIONS, "score"}))
def test_an_option_is_written_as_its_argument(command):
    """--floor-like options are repeatable and stand for a plural; the others have the name of the argument, with dashes."""
    for name, option in options_of(command).items():
        long = [text.removeprefix("--").replace("-", "_") for text in option.opts if text.startswith("--")]
        assert name in long or (option.multiple and f"{long[0]}s" == name) or name in ("as_json", "timed", "cases", "scorers"), option.opts
