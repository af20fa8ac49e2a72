"""Shell completion: the scripts for three shells, and what is offered behind options."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from proxyprune.cli import main
from proxyprune.cli.options.completion import PRESETS, PROPOSERS, SAMPLERS

ROOT = Path(__file__).parents[2]
SHELLS = ("bash", "zsh", "fish")
HEAVY = ("torch", "numpy", "diffusers", "rich")
PROGRAM = "import sys; sys.argv[0] = 'proxyprune'; from proxyprune.cli import main; main(prog_name='proxyprune')"


def completing(instruction: str, **variables: str) -> str:
    """Return what the program answers to a shell."""
    environment = os.environ | {"_PROXYPRUNE_COMPLETE": instruction, "PYTHONPATH": str(ROOT)} | variables
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout


def offered(*words: str) -> list[str]:
    """Completions of the last word."""
    completer = BashComplete(main, {}, "proxyprune", "_PROXYPRUNE_COMPLETE")
    return [item.value for item in completer.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts(shell, tmp_path):
    """Each shell gets a script that names the program, and that the shell itself, where it is installed, accepts."""
    script = completing(f"{shell}_source")
    assert f"_PROXYPRUNE_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script, encoding="utf-8")
        assert subprocess.run([shell, "-n", tmp_path / "script"], check=False).returncode == 0


def test_a_shell_is_answered():
    """Through the process, as a shell does it: names that begin like the word."""
    assert completing("bash_complete", COMP_WORDS="proxyprune score --scorer ma", COMP_CWORD="3").split() == [
        "plain,magnitude",
        "plain,magnitude_l1",
        "plain,magnitude_l2",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("pru",), ["prune"]),
        (("diffusion", "tr"), ["train"]),
        (("prune", "--mode", ""), ["width", "depth", "both"]),
        (("prune", "--norm-g"), ["--norm-groups"]),
        (("score", "-s", "tay"), ["taylor"]),
        (("score", "--fallback", "rand"), ["random"]),
        (("search", "--proposer", "evo"), ["evolution"]),
        (("search", "--start", "abl"), ["ablation"]),
        (("compare", "--scorers", "magnitude,tay"), ["magnitude,taylor"]),
        (("compare", "--scorers", "taylor,tay"), []),
        (("diffusion", "train", "--preset", "digits-"), ["digits-small", "digits-class", "digits-dit"]),
        (("diffusion", "plan", "--set", "compute.base_s"), ["compute.base_share="]),
        (("diffusion", "sample", "--sampler", "dpm"), ["dpm++"]),
        (("report", "x", "--open", "n"), ["never"]),
    ],
)
def test_offers(words, expected):
    """Commands, options, choices and names are completed."""
    assert offered(*words) == expected


def test_model_files_are_left_to_the_shell():
    """Behind --model the shell completes file names itself."""
    completer = BashComplete(main, {}, "proxyprune", "_PROXYPRUNE_COMPLETE")
    assert [item.type for item in completer.get_completions(["score", "--model"], "ex")] == ["file"]


def test_nothing_heavy_is_loaded():
    """A completion imports none of the libraries that take seconds."""
    code = (
        "import sys; from click.shell_completion import BashComplete; from proxyprune.cli import main\n"
        "completer = BashComplete(main, {}, 'proxyprune', 'X')\n"
        "for words in (['score', '-s'], ['compare', '-s'], ['search', '-p'], ['diffusion', 'train', '--set'], ['prune', '--mode']):\n"
        "    assert completer.get_completions(words, '')\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert found.strip() == "[]"


def test_offered_names_are_the_real_ones():
    """The names that are written down for speed are those of the modules that own them."""
    from proxyprune.diffusion import NoiseConfig
    from proxyprune.diffusion.config.presets import CONFIGS
    from proxyprune.diffusion.process.noise_schedule import training_scheduler
    from proxyprune.diffusion.sampling.schedulers import sampler
    from proxyprune.searching.proposers.by_name import PROPOSERS as BY_NAME

    assert set(PRESETS) == set(CONFIGS)
    for name in SAMPLERS:
        schedule = "flow" if name == "flow" else "linear"
        assert hasattr(sampler(name, training_scheduler(NoiseConfig(schedule=schedule))), "set_timesteps")
    assert set(PROPOSERS) == set(BY_NAME)
