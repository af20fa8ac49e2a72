"""Reports: every kind of result is recognised, what is damaged is named, and a page says what the result says and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings, strategies as st
from results import HOSTILE, RESULTS, Hourglass, block, described, evaluation, network, older, pruned, rounds, scored, written

import proxyprune as pp
from proxyprune import ProxyPruneError
from proxyprune.cli import main
from proxyprune.errors import ResultFileError, StorageError
from proxyprune.graph.group_names import group_names
from proxyprune.measuring.wall_time import run_seconds
from proxyprune.reporting import Result, read_result, render, write_report
from proxyprune.reporting.draw.charts import Series, line_chart
from proxyprune.reporting.draw.network_map import Shades
from proxyprune.reporting.draw.placement import BLOCKS_A_LINE, NODE_HEIGHT, NODE_WIDTH, draw
from proxyprune.reporting.draw.svg import Named, Scale, tag
from proxyprune.reporting.read.structure_record import StructureRecord

KINDS = {
    "network": "pruned network",
    "older": "pruned network",
    "plan": "plan",
    "score": "ranking",
    "score-long": "ranking",
    "structure": "structure",
    "search": "search",
    "memory": "search",
    "comparison": "comparison",
    "diffusion": "diffusion run",
    "evaluation": "evaluation",
    "hostile": "ranking",
}


class Checker(HTMLParser):
    """Collects what a page consists of; complains about tags that are not closed."""

    void = frozenset({"meta", "link", "img", "wbr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.drawn: list[tuple[dict[str, str | None], str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.open[-1:] == ["text"]:
            self.drawn.append((self.tags[-1][1], data))

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def page_of(name: str, folder: Path) -> Checker:
    return Checker(render(read_result(RESULTS[name](folder))))


@pytest.mark.parametrize("name", RESULTS)
def test_every_kind_is_recognised(tmp_path, name):
    """Each kind of result is told from the others by what is in it."""
    assert read_result(RESULTS[name](tmp_path)).kind == KINDS[name]


@pytest.mark.parametrize("name", RESULTS)
def test_pages_are_whole_and_ask_for_nothing(tmp_path, name):
    """Every tag is closed, ids are unique, links stay on the page and lead somewhere, and nothing is loaded from anywhere."""
    page = page_of(name, tmp_path)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not {"script", "iframe", "object", "embed", "form", "base"} & {name for name, _ in page.tags}
    for name, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on") or key == "style"]
        for key in ("href", "src"):
            value = attributes.get(key) or "data:"
            assert value.startswith("data:") or value[1:] in ids, f"{name} {key}={value}"
    assert page.tags.count(("meta", {"charset": "utf-8"})) == 1


@pytest.mark.parametrize("name", RESULTS)
def test_drawings_and_tables_are_described(tmp_path, name):
    """Each drawing that carries meaning has a title and a description, each table a caption and headings, each frame a name."""
    page = page_of(name, tmp_path)
    ids = {attributes.get("id") for _, attributes in page.tags}
    for tag_name, attributes in page.tags:
        if tag_name == "svg" and attributes.get("aria-hidden") != "true" and "aria-label" not in attributes:
            assert set((attributes["aria-labelledby"] or "").split()) <= ids
        if attributes.get("role") == "region":
            assert attributes["aria-label"]
            assert attributes["tabindex"] == "0"
    counts = [tag_name for tag_name, _ in page.tags]
    assert counts.count("table") == counts.count("caption")
    assert all(attributes.get("scope") == "col" for tag_name, attributes in page.tags if tag_name == "th")


def test_a_network_is_told_in_full(tmp_path):
    """Every block, width, pinned group, version and hash of a saved network is on its page."""
    found = pruned()
    words = page_of("network", tmp_path).words
    joined = re.sub(r"\s", "", words)
    for name in found.graph.block_by_id:
        assert name in joined
    for before, after in found.plan.widths.values():
        assert f"{before} → {after}" in words
    for reason in found.report.pinned.values():
        assert re.sub(r"\s", "", reason) in joined
    assert found.plan.removed_blocks
    assert f"Blocks removed as a whole: {', '.join(found.plan.removed_blocks)}." in words
    for text in (found.plan.sha256, found.graph.fingerprint, found.report.made_with["torch"], "magnitude", "Hourglass"):
        assert text.replace(" ", "") in joined


def test_channel_groups_are_named_by_block_and_role(tmp_path):
    """Cut and pinned groups have the names of printed plans; the id stands in a column, or in the hint of a cell with several groups."""
    found = pruned()
    names = group_names(found.graph)
    page = page_of("network", tmp_path)
    joined = re.sub(r"\s", "", page.words)
    for group in found.plan.widths:
        assert re.sub(r"\s", "", names[group]) in joined
        assert group in joined
    hints = ", ".join(attributes["title"] or "" for tag_name, attributes in page.tags if tag_name == "td" and "title" in attributes)
    for group in found.report.pinned:
        assert re.sub(r"\s", "", names[group]) in joined
        assert group in hints


@pytest.mark.parametrize("saved", [True, False])
def test_names_follow_from_ids_where_a_file_has_none(tmp_path, saved):
    """A plan without a graph, and graph.json of an earlier version, give names that are made from the ids."""
    plan = pruned().plan
    folder = RESULTS["network" if saved else "plan"](tmp_path)
    if saved:
        graph = json.loads((folder / "graph.json").read_text())
        for group in graph["groups"]:
            del group["name"]
        (folder / "graph.json").write_text(json.dumps(graph))
    names = read_result(folder).group_names
    assert plan.widths.keys() <= names.keys()
    assert names["wide.conv1.weight:0"] == "wide.conv1 channels"


class Kept(Hourglass):
    """A network with a parameter that its forward does not reach, and an attribute that only another method uses."""

    def __init__(self) -> None:
        super().__init__()
        self.wide.inner = 16
        self.token = torch.nn.Parameter(torch.zeros(1, 5))


def test_what_was_kept_as_it_was_is_listed(tmp_path):
    """Parameters that no example call reaches, and attributes that stay although they equal an old size, are on the page."""
    result = pp.prune(Kept(), torch.zeros(1, 3, 16, 16), target=0.5)
    assert result.report.unreached == ("token",)
    assert "wide.inner" in result.report.not_followed
    folder = pp.save(result, tmp_path / "kept")
    page = Checker(render(read_result(folder)))
    words = re.sub(r"\s", "", page.words)
    assert "Keptasitwas" in words
    assert "token" in words
    assert re.sub(r"\s", "", result.report.not_followed["wide.inner"]) in words
    assert "Kept as it was" not in page_of("network", tmp_path).words


def test_shares_on_the_page_are_those_of_the_plan(tmp_path):
    """The headline's shares are the plan's own figures."""
    plan = pruned().plan
    words = page_of("network", tmp_path).words
    assert f"MACs left {100 * plan.macs / plan.base_macs:.1f} %" in words
    assert f"parameters left {100 * plan.params / plan.base_params:.1f} %" in words


def test_measured_time_is_shown_where_it_was_measured(tmp_path):
    """Seconds that were measured are in the saved report and on the page; where nobody measured, nothing is claimed."""
    found = pruned()
    timed = replace(found, report=replace(found.report, seconds=run_seconds(Hourglass(), found.model, torch.zeros(1, 3, 8, 8))))
    assert all(0 < seconds < 5 for seconds in timed.report.seconds)
    timed = replace(timed, report=replace(timed.report, seconds=(0.004, 0.003)))
    words = Checker(render(read_result(pp.save(timed, tmp_path / "timed")))).words
    assert "measured time left 75.0 %" in words
    assert "4 ms 3 ms 75.0 %" in words
    assert "Measured time" not in page_of("network", tmp_path).words


def test_the_map_has_every_block_and_wire(tmp_path):
    """A saved structure draws one box a block and one wire a connection; skips are told apart as in `to_networkx`."""
    structure = read_result(network(tmp_path)).structure
    graph = pruned().graph
    assert structure is not None
    assert [(edge.source, edge.target, edge.skip) for edge in structure.edges] == [
        (source, target, kind == "skip") for target in graph.block_by_id for source, _, kind in sorted_edges(graph, target)
    ]
    assert structure.skips == 1
    page = page_of("network", tmp_path)
    assert sum(name == "path" for name, _ in page.tags) == len(structure.edges)
    assert sum((attributes.get("class") or "").startswith("node ") for _, attributes in page.tags) == len(graph.blocks)


def sorted_edges(graph: pp.ModelGraph, target: str) -> list[tuple[str, str, str]]:
    edges = graph.to_networkx().in_edges(target, data="kind")
    order = graph.block_by_id[target].inputs
    return sorted(edges, key=lambda edge: order.index(edge[0]))


def test_unreliable_rankings_warn_first(tmp_path):
    """A ranking that calls itself unreliable says so before anything else, and how it was asked for."""
    words = page_of("score", tmp_path).words
    assert words.index("agree no better than chance") < words.index("The network Each box")
    assert "0.31 (mean Kendall tau" in words
    for text in ("local", "replies from the cache 4", "samples 5"):
        assert text in words


def test_a_search_shows_its_rounds(tmp_path):
    """Losses, verdicts and reasons of all rounds are there; the best is marked, whether read from the JSON or from half-written lines."""
    for name in ("search", "memory"):
        words = page_of(name, tmp_path).words
        assert "best held-out loss 1.05" in words
        assert "better ★" in words
        assert "The loss is not finite." in words
        assert "the same plan as round 1" in words
        assert "5 rounds, 4 of them measured" in words


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 8, 8, generator=generator) for _ in range(3)]


def error(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return (model(batch) - batch).square().mean()


def test_a_real_search_is_read(tmp_path, batches):
    """What a search returns, remembers and saves is shown: the same rounds from its JSON and its memory, the network from its folder."""
    memory = tmp_path / "memory.jsonl"
    options = {"target": 0.7, "proposer": "random", "rounds": 3, "batches": batches, "loss_fn": error, "start": "magnitude"}
    found = pp.search(Hourglass(), torch.zeros(1, 3, 8, 8), memory=memory, **options)
    printed = {**found.to_dict(), "graph": found.graph.to_dict()}
    told = read_result(written(tmp_path / "search.json", printed))
    remembered, saved = read_result(memory), read_result(pp.save(found, tmp_path / "best"))
    assert told.search is not None
    assert remembered.search is not None
    assert told.search.rounds == remembered.search.rounds
    assert told.search.measured == found.measurements
    assert told.search.best is not None
    assert told.search.best.loss == found.loss
    assert told.structure == saved.structure is not None
    for result in (told, remembered, saved):
        Checker(render(result))


def test_a_real_comparison_is_read(tmp_path, batches):
    """What `compare` returns is shown with all its cells, cases and scorers."""
    arms = {"magnitude": "magnitude", "random": "random"}
    found = pp.compare(Hourglass(), torch.zeros(1, 3, 8, 8), arms, targets=[0.7], seeds=range(2), batches=batches, loss_fn=error)
    told = read_result(written(tmp_path / "comparison.json", found.to_dict())).comparison
    assert told is not None
    assert told.scorers == ("magnitude", "random")
    assert told.cases == tuple(map(str, found.cases))
    assert [cell.loss for cell in told.cells] == [cell.loss for cell in found.cells]
    assert "Cut to width 0.7" in Checker(render(Result("comparison", "c", comparison=told))).words


def test_a_comparison_shows_its_spread(tmp_path):
    """Mean and deviation over seeds, best first; what failed is named."""
    words = page_of("comparison", tmp_path).words
    assert "0.92 ± 0.02" in words
    assert words.rindex("0.92 ± 0.02") < words.rindex("1.02 ± 0.02")
    assert "0.10 ± 0.1" in words
    assert "broken: no key" in words


def test_a_diffusion_run_shows_what_it_has(tmp_path):
    """Intervals, budgets, ledger, losses and pictures of a run that is still going on."""
    page = page_of("diffusion", tmp_path)
    assert "2 of 3" in page.words
    assert "-4.0 to 6.0 dB" in page.words
    assert "217 K MACs of training compute" in page.words
    assert f"{100 * (0.7 * 15 + 0.75 * 15 + 0.9 * 20) / 50:.1f} %" in page.words
    assert [name for name, _ in page.tags].count("img") == 1
    assert "Signal-to-noise ratio from 20.0 to -30.0 dB, split into 3 intervals." in page.words
    assert "In 1 of 3 bins the expert's loss is below the base's." in page.words
    assert "-20.0 %" in page.words
    assert "Damage by size" in page.words
    assert "log ratio of losses" in page.words
    (line,) = [a for name, a in page.tags if name == "polyline" and "loss-chart" not in str(a) and len((a["points"] or "").split()) > 100]
    assert len((line["points"] or "").split()) <= 240


def test_an_interval_has_one_colour(tmp_path):
    """In the curve, the budgets, the ledger and every chart of losses; the base has one of its own."""
    page = page_of("diffusion", tmp_path)
    ends = {words: attributes["class"] for attributes, words in page.drawn if (attributes.get("class") or "").startswith("end ")}
    assert {ends[name] for name in ("interval 1", "expert 1")} == {"end end-line-1"}
    assert ends["base"] == "end end-line-base"
    fills = [a["class"] for name, a in page.tags if name == "rect" and (a.get("class") or "").startswith("fill-")]
    assert fills == ["fill-0", "fill-1", "fill-2", "fill-base", "fill-1", "fill-0", "fill-1"]  # the intervals, then the ledger


def test_evaluations_are_a_frontier(tmp_path):
    """Of several pipelines; the best distance is the headline, and one evaluation is a table without a chart."""
    page = page_of("evaluation", tmp_path)
    assert "2 pipelines compared by the images that they generate." in page.words
    assert "1.400" in page.words
    assert "runs/b/pipeline, 12 steps, 7.2 M MACs" in page.words
    assert "frontier-chart" in str(page.tags)
    assert "Few images." in page.words
    single = Checker(render(read_result(written(tmp_path / "one.json", evaluation()))))
    assert "1 evaluation" in single.words
    assert "frontier-chart" not in str(single.tags)


def test_an_evaluation_in_a_run_is_part_of_its_report(tmp_path):
    """Under its fixed name; a damaged one is named."""
    run = RESULTS["diffusion"](tmp_path)
    written(run / "evaluation.json", evaluation())
    words = Checker(render(read_result(run))).words
    assert "Quality of the images" in words
    assert "Ledger of training compute" in words
    written(run / "evaluation.json", evaluation(frechet=3))
    with pytest.raises(ResultFileError, match=r"evaluation\.json"):
        read_result(run)


def test_two_runs_side_by_side(tmp_path):
    """Figures, and the settings that differ; anything but a run beside it is refused."""
    first, second = RESULTS["diffusion"](tmp_path), RESULTS["diffusion"](tmp_path / "other")
    second = second.rename(tmp_path / "other" / "smaller")
    config = json.loads((second / "config.json").read_text())
    written(second / "config.json", {**config, "seed": 7})
    page = tmp_path / "page.html"
    found = CliRunner().invoke(main, ["report", str(first), "--beside", str(second), "--out", str(page)])
    assert found.exit_code == 0, found.output
    words = Checker(page.read_text()).words
    assert "Beside smaller" in words
    assert "MACs of expert 1 750 750" in words
    assert "Settings that differ setting run smaller seed 0 7" in words
    refused = CliRunner().invoke(main, ["report", str(first), "--beside", str(RESULTS["plan"](tmp_path))])
    assert refused.exit_code != 0
    assert "found a diffusion run and a plan" in " ".join(refused.output.split())


def test_names_stay_text(tmp_path):
    """Names that look like markup are on the page as text, and change nothing of its structure."""
    page = page_of("hostile", tmp_path)
    harmless = written(tmp_path / "harmless.json", scored([block(f"b{i}", [f"b{i - 1}"] if i else ["input"]) for i in range(len(HOSTILE))]))
    allowed = {name for name, _ in Checker(render(read_result(harmless))).tags}
    assert {name for name, _ in page.tags} <= allowed
    joined = re.sub(r"\s", "", page.words)
    for name in HOSTILE:
        assert re.sub(r"\s", "", name) in joined


def test_the_policy_allows_the_page_its_own_style_only(tmp_path):
    """The content security policy names the hash of the one style sheet, and nothing else."""
    import base64
    import hashlib

    text = render(read_result(network(tmp_path)))
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.replace("&#39;", "'").split("; ")[:2] == ["default-src 'none'", f"style-src 'sha256-{digest}'"]
    assert "http:" not in style
    assert "@import" not in style
    assert "url(" not in style


def test_same_result_same_page(tmp_path):
    """Reading and rendering twice gives the same bytes: no date, no random id."""
    path = network(tmp_path)
    assert render(read_result(path)) == render(read_result(path))


def test_older_folders_are_shown_and_loaded(tmp_path):
    """A folder that was saved before structures were kept says so, shows the rest, and loads as ever."""
    path = older(tmp_path)
    result = read_result(path)
    assert result.structure is None
    assert "earlier version" in result.warnings[0]
    assert "Widths before and after" in Checker(render(result)).words
    assert isinstance(pp.load(path, Hourglass), Hourglass)


def test_changed_files_are_noticed(tmp_path):
    """A ranking that was edited after saving is shown with a warning."""
    path = network(tmp_path)
    ranking = json.loads((path / "ranking.json").read_text())
    ranking["notes"] = ["invented"]
    (path / "ranking.json").write_text(json.dumps(ranking))
    result = read_result(path)
    assert result.warnings == ("ranking.json was changed after it was saved, or is missing; its figures may not belong to this network.",)


def test_a_memory_in_the_folder_is_read_too(tmp_path):
    """A search that kept its memory in the folder that it saved to is shown with its rounds and its network on one page."""
    path = network(tmp_path)
    RESULTS["memory"](tmp_path).rename(path / "memory.jsonl")
    result = read_result(path)
    assert result.kind == "search"
    assert result.structure is not None
    assert result.search is not None
    assert len(result.search.rounds) == len(rounds())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b"", "it is not JSON"),
        ("a.json", b"\xff\xfe{}", "it is not JSON"),
        ("a.json", b"[1]", "expected an object, found list"),
        ("a.json", b'{"a": 1}', "not a result of proxyprune"),
        ("a.json", b"[" * 100_000, "it is not JSON"),
        ("a.json", b'{"blocks": [], "groups": {}}', "'groups' must be a list"),
        ("a.json", b'{"blocks": [{"id": 3}], "groups": []}', "'id' must be a string"),
        ("a.json", b'{"blocks": [{"id": "a", "macs": -1}], "groups": []}', "'macs' must be a whole number"),
        ("a.json", b'{"blocks": [{"id": "a", "macs": 1e9}], "groups": []}', "'macs' must be a whole number"),
        ("a.json", b'{"blocks": [{"id": "a", "inputs": ["b"]}], "groups": []}', "reads 'b', which is missing"),
        ("a.json", b'{"blocks": [{"id": "a"}, {"id": "a"}], "groups": []}', "names of their own"),
        ("a.json", b'{"scores": {"a": 2}, "scorer": "s", "schema": 1}', "expected a finite number in [0, 1]"),
        ("a.json", b'{"scores": {"a": NaN}, "scorer": "s", "schema": 1}', "NaN is not a number"),
        ("a.json", b'{"cells": [], "scorings": []}', "holds no measurement"),
        ("a.json", b'{"plan": {}, "report": {}}', "'base_macs' must be a whole number from 0 up, but is missing"),
        ("a.jsonl", b'{"kind": "comparison"}\n', "not the memory of a search"),
        ("a.jsonl", b'{"kind": "search"}\nnonsense\n{}\n', "line 2"),
        ("a.jsonl", b"", "not the memory of a search"),
    ],
)
def test_what_is_no_result_is_named(tmp_path, name, content, said):
    """A file that is none, or a damaged one, gives one error that says where and what."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ResultFileError) as caught:
        read_result(path)
    assert said in str(caught.value)
    assert name in str(caught.value)


def test_trials_of_no_size_are_named(tmp_path):
    """A size of nothing has no place among sizes that were tried."""
    path = RESULTS["diffusion"](tmp_path)
    layout = json.loads((path / "layout.json").read_text())
    layout["measured"]["sizes"][1][0]["fraction"] = 0.0
    written(path / "layout.json", layout)
    with pytest.raises(ResultFileError, match=r"layout\.json.*a size in \(0, 1\]"):
        read_result(path)


def test_folders_that_are_no_result(tmp_path):
    """A missing path and a folder of something else are told apart."""
    with pytest.raises(StorageError, match="There is no result"):
        read_result(tmp_path / "nothing")
    with pytest.raises(ResultFileError, match=r"neither a manifest\.json nor"):
        read_result(tmp_path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30)
@given(data=st.data())
def test_damage_is_an_error_or_a_page(tmp_path_factory, data):
    """Whatever one value of a result is replaced with, out comes a whole page or an error of ours."""
    folder = tmp_path_factory.mktemp("damaged")
    path = RESULTS[data.draw(st.sampled_from(["score", "structure", "search", "comparison", "diffusion"]))](folder)
    damaged = path / "layout.json" if path.is_dir() else path
    content = json.loads(damaged.read_text())
    spot = content
    while isinstance(spot, dict | list) and spot:
        key = data.draw(st.sampled_from(sorted(spot)) if isinstance(spot, dict) else st.integers(0, len(spot) - 1))
        inner = spot[key]
        if not inner or not isinstance(inner, dict | list) or data.draw(st.integers(0, 3)) == 0:
            spot[key] = data.draw(_JSON)
            break
        spot = inner
    damaged.write_text(json.dumps(content))
    said = ""
    try:
        Checker(render(read_result(path)))
    except ProxyPruneError as error:
        said = str(error)
    assert not said or damaged.name in said


@given(
    st.lists(
        st.tuples(st.sampled_from([(), (4,), (2, 2), (8, 8), (64,)]), st.lists(st.integers(-1, 40), max_size=4)), min_size=1, max_size=40
    )
)
def test_blocks_never_cover_each_other(blocks):
    """Whatever the wiring, each block has a place of its own inside the drawing, and each connection one wire."""
    data = {"blocks": [], "groups": []}
    for index, (resolution, sources) in enumerate(blocks):
        names = ["input" if source % (index + 1) == index else f"b{source % (index + 1)}" for source in sources]
        data["blocks"].append(block(f"b{index}", names) | {"resolution": list(resolution)})
    from proxyprune.reporting.read.json_fields import Fields

    structure = StructureRecord.read(Fields(data, "here"))
    placed = draw(structure)
    places = [(node.x, node.y) for node in placed.nodes]
    for index, (x, y) in enumerate(places):
        assert NODE_WIDTH / 2 <= x <= placed.width - NODE_WIDTH / 2
        assert NODE_HEIGHT / 2 <= y <= placed.height - NODE_HEIGHT / 2
        assert not any(abs(x - a) < NODE_WIDTH and abs(y - b) < NODE_HEIGHT for a, b in places[:index])
    assert len(placed.wires) == len(structure.edges)


def test_one_resolution_is_broken_into_lines():
    """A long network without levels stands in lines like text, not in one that never ends."""
    from proxyprune.reporting.read.json_fields import Fields

    data = {"blocks": [block(f"b{i}", [f"b{i - 1}"] if i else ["input"]) for i in range(100)], "groups": []}
    placed = draw(StructureRecord.read(Fields(data, "here")))
    assert len(placed.rows) == -(-100 // BLOCKS_A_LINE)
    assert placed.width < 1200


def test_shades_follow_the_rank():
    """Colours split the blocks evenly whatever the values; equal importances share a colour."""
    shades = Shades.over([0.5 + k / 1e6 for k in range(9)] + [1.0])
    assert [shades.of(score) for score in shades.scores] == [f"s{k}" for k in range(10)]
    assert len({Shades.over([0.3, 0.3, 0.3]).of(0.3)}) == 1
    assert Shades.over([]).of(0.2) == "s-none"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1e-9, 2e-9), (-5.0, 1e12), (3.0, 3.0)])
def test_scales_have_round_ticks_inside(low, high):
    """Ticks are few, ascending, and inside; equal values still make a scale."""
    scale = Scale.around([low, high], 0.0, 100.0)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 8
    assert ticks == sorted(ticks)
    assert all(-1e-6 <= scale(tick) <= 100 + 1e-6 for tick in ticks)


def test_values_in_drawings_are_escaped():
    """Text and attributes of SVG cannot become markup."""
    assert tag("text", "<b>&", class_='"><x>') == '<text class="&#34;&gt;&lt;x&gt;">&lt;b&gt;&amp;</text>'


def test_far_levels_do_not_press_the_points_together():
    """A level far from all points is named at the edge; the points keep the height of the chart."""
    series = [Series("", [(0.0, 1.0), (1.0, 1.01)], "dots")]
    text = line_chart(Named("c", "t", "d"), series, ("x", "y"), {"unpruned": 50.0})
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', text)]
    assert max(heights) - min(heights) > 100
    assert "unpruned 50 ↑" in text


def test_colours_of_the_map_can_be_read():
    """Each shade's number has a contrast of 4.5 to it, light and dark; so have the labels of series on paper."""
    css = (resources.files("proxyprune.reporting") / "templates" / "style.css").read_text()
    light, _, dark = css.partition("@media screen and (prefers-color-scheme: dark)")
    for part in (light, dark):
        scheme = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part))
        assert all(contrast(scheme[f"s{k}"], scheme[f"on-s{k}"]) >= 4.5 for k in range(10))
        assert all(contrast(scheme[f"c{k}"], scheme["paper"]) >= 4.5 for k in range(6))
        assert all(contrast(scheme[f"c{k}"], scheme["on-c"]) >= 4.5 for k in range(6))
        assert all(contrast(scheme[name], scheme["band"]) >= 4.5 for name in ("ink", "soft"))


def contrast(one: str, other: str) -> float:
    """Ratio of luminances, WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_where_a_report_goes(tmp_path):
    """Into the folder, or beside the file; what is no HTML name, or has no folder, is refused; an older report is replaced."""
    folder, file = network(tmp_path), described(tmp_path)
    assert write_report(folder) == folder / "report.html"
    assert write_report(file) == tmp_path / "structure.report.html"
    assert write_report(file, folder / "report.html") == folder / "report.html"
    assert "structure" in (folder / "report.html").read_text()
    for out, said in (("plan.json", "ends in '.json'"), ("nowhere/r.html", "there is no folder"), ("network", "ends in ''")):
        with pytest.raises(StorageError, match=said):
            write_report(file, tmp_path / out)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_saving_again_keeps_the_report(tmp_path):
    """A report in a saved folder outlives the next save, and the folder still loads."""
    folder = network(tmp_path)
    write_report(folder)
    pp.save(pruned(), folder)
    assert (folder / "report.html").is_file()
    assert isinstance(pp.load(folder, Hourglass), Hourglass)


def test_the_command(tmp_path):
    """It says where the page is, prints JSON for machines, and fails with one message."""
    folder = network(tmp_path)
    said = CliRunner().invoke(main, ["report", str(folder), "--out", str(tmp_path / "r.html")])
    assert said.exit_code == 0
    assert str(tmp_path / "r.html") in said.stdout
    told = json.loads(CliRunner().invoke(main, ["report", str(folder), "--json"]).stdout)
    assert told["kind"] == "pruned network"
    assert told["file"] == str(folder / "report.html")
    assert {"The network", "Ranking", "Provenance"} <= set(told["sections"])
    failed = CliRunner().invoke(main, ["report", str(tmp_path / "nothing")])
    assert failed.exit_code == 2
    assert "There is no result" in failed.stderr


def test_a_report_needs_no_torch(tmp_path):
    """Reading and rendering a saved network imports neither torch nor matplotlib: a report takes a moment, also where they are missing."""
    folder = network(tmp_path)
    code = (
        "import sys; from proxyprune.reporting import write_report; write_report(sys.argv[1]); "
        "print([name for name in ('torch', 'matplotlib', 'networkx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_empty_results_make_a_page():
    """A result in which nothing was found is a page without sections but provenance."""
    page = Checker(render(Result("structure", "nothing")))
    assert [attributes.get("id") for name, attributes in page.tags if name == "section"] == ["provenance"]
