"""Sessions: what the tools answer, what the log holds, and that no call leads out of the budget or the workspace."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from session_calls import answered, failed
from subject import subject

import proxyprune as pp
from proxyprune.assistant import TOOLS, Bounds, PruningTask, Replay, Session
from proxyprune.assistant.state import ONE_SHOT
from proxyprune.errors import InputError, JournalError, StorageError
from proxyprune.measuring.held_out import Data, held_out_loss
from proxyprune.scoring import score
from proxyprune.support.strict_json import loads


@cache
def task(target=0.6, mode="width", data=True, quality=False) -> PruningTask:
    network = subject()
    given = {"batches": network.batches, "loss_fn": network.loss_fn} if data else {}
    return PruningTask.of(
        network.model,
        network.example_inputs,
        target,
        mode=mode,
        recovery=pp.Recovery(3, 1e-3),
        quality=(lambda model: float(model(network.batches[0][0]).abs().mean())) if quality else None,
        **given,
    )


@pytest.fixture
def session(tmp_path):
    """Yield a session on the small network."""
    with Session.open(task(), tmp_path / "work") as opened:
        yield opened


def log_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "session.jsonl").read_text().splitlines()]


class TestTools:
    """What each tool answers."""

    def test_describe_has_text_goal_and_scorers(self, session):
        """The text is the graph's, the budget is in MACs, and no scorer reaches another machine."""
        found = answered(session, "describe")
        assert found["text"] == session.task.graph.to_text()
        assert found["goal"]["at_most"] == int(0.6 * session.task.graph.macs)
        assert {"taylor", "magnitude", "random"} <= set(found["scorers"])
        assert not {"openai", "anthropic", "local"} & set(found["scorers"])
        block = answered(session, "describe", block="blocks.0")
        assert block["channel_groups"][0]["width"] in (24, 12)

    def test_long_text_comes_in_pages(self, tmp_path):
        """The pages put together are the whole text."""
        with Session.open(task(), tmp_path / "w", Bounds(answer_chars=2000)) as opened:
            text, offset = "", 0
            while offset is not None:
                page = opened.call("describe", {"offset": offset}).content
                text, offset = text + page["text"], page["next_offset"]
        assert text == opened.task.graph.to_text()

    def test_source_is_the_block_class(self, session):
        """The text is the class's own, and a session may hide it."""
        assert "self.up = nn.Conv2d" in answered(session, "source", block="blocks.1")["text"]

    def test_source_can_be_switched_off(self, tmp_path):
        """Without --source nothing is shown."""
        network = subject()
        hidden = PruningTask.of(network.model, network.example_inputs, 0.6, show_source=False)
        with Session.open(hidden, tmp_path / "w") as opened:
            assert "does not show source" in failed(opened, "source", block="blocks.1")

    def test_price_equals_the_network(self, session):
        """A priced width has the cost of the plan with that width, and odd widths round down to what the group allows."""
        made = answered(session, "plan", ranking="r0")
        priced = answered(session, "price", widths={group: after for group, (_, after) in made["widths"].items()})
        assert (priced["macs"], priced["params"]) == (made["macs"], made["params"])
        assert priced["within_budget"]
        assert priced["blocks"] == pytest.approx(made["blocks"], abs=1e-4)
        whole = answered(session, "price")
        assert whole["macs"] == session.task.graph.macs
        assert not whole["within_budget"]
        assert answered(session, "price", remove=["blocks.0"])["macs"] < whole["macs"]
        assert "cannot be removed" in failed(session, "price", remove=["stem"])

    def test_own_scores_change_the_plan(self, session):
        """A block that the assistant scores high keeps more, one it scores low keeps less; with strength 0 the channels decide alone."""
        high = answered(session, "score", scores={"blocks.2": 1.0, "blocks.0": 0.0}, strength=3)["ranking"]
        low = answered(session, "score", scores={"blocks.2": 0.0, "blocks.0": 1.0}, strength=3)["ranking"]
        none = answered(session, "score", scores={"blocks.2": 0.0}, strength=0)["ranking"]
        shares = [answered(session, "plan", ranking=name)["blocks"] for name in (high, low)]
        assert shares[0].get("blocks.2", 1.0) > shares[1].get("blocks.2", 1.0)
        assert answered(session, "plan", ranking=none)["plan"] == ONE_SHOT

    def test_a_scorer_gives_its_own_ranking(self, session):
        """The tool answers what `score` returns."""
        found = answered(session, "score", scorer="magnitude")
        expected = score(session.task.graph, "magnitude", model=session.task.model)
        assert found["scores"] == pytest.approx(dict(expected.scores))
        assert "openai" in failed(session, "score", scorer="openai")

    def test_constraints_hold(self, session):
        """Floors, ceilings and keep patterns of a call reach the plan."""
        found = answered(session, "plan", keep=["blocks.0"], ceilings={"blocks.2": 0.25})
        assert "blocks.0" not in found["blocks"]
        assert found["blocks"]["blocks.2"] <= 0.3

    def test_measure_is_the_held_out_loss(self, session):
        """The loss is that of the network which `apply_plan` gives, and asking again costs nothing."""
        found = answered(session, "measure", plan="p0")
        data: Data = session.task.data
        network = pp.apply_plan(session.task.model, session._state.plan("p0"), session.task.inputs)
        assert found["loss"] == held_out_loss(network, data, 0)
        assert found["base"]["loss"] == held_out_loss(session.task.model, data, 0)
        assert found["measurements_left"] == 63
        again = answered(session, "measure", plan="p0")
        assert (again["measured_before"], again["measurements_left"]) == (True, 63)
        assert answered(session, "measure", plan="p0", recovery=True)["loss"] != found["loss"]

    def test_compensation_is_a_treatment(self, session):
        """A refit is measured beside the bare cut, and the saved network says what it did."""
        bare = answered(session, "measure", plan="p0")["loss"]
        found = answered(session, "measure", plan="p0", compensate=True)
        assert found["treatment"] == "compensated"
        assert found["measurements_left"] == 62
        assert answered(session, "history")["plans"]["p0"]["measured"] == {"cut": {"loss": bare}, "compensated": {"loss": found["loss"]}}
        assert answered(session, "apply", plan="p0", name="n", compensate=True)["loss"] == found["loss"]
        report = json.loads((session._state.folder.path / "networks" / "n" / "report.json").read_text())
        assert report["compensation"] is not None

    def test_time_and_quality(self, tmp_path):
        """Both are measured when asked for; a missing quality function is named."""
        with Session.open(task(quality=True), tmp_path / "w") as opened:
            found = answered(opened, "measure", plan="p0", what=["quality", "seconds"])
            assert found["quality"] > 0
            assert all(seconds > 0 for seconds in found["seconds"])
        with Session.open(task(), tmp_path / "v") as opened:
            assert "quality(model)" in failed(opened, "measure", plan="p0", what=["quality"])

    def test_compare_and_history(self, session):
        """Plans stand side by side with what was measured, and the best is named."""
        other = answered(session, "plan", keep=["blocks.0"])["plan"]
        losses = {plan: answered(session, "measure", plan=plan)["loss"] for plan in (ONE_SHOT, other)}
        found = answered(session, "compare", plans=[ONE_SHOT, other])
        assert found["plans"][other]["measured"]["cut"]["loss"] == losses[other]
        assert found["blocks"]["blocks.0"][1] == 1.0
        past = answered(session, "history")
        assert past["best"]["cut"] == min(losses, key=losses.get)
        assert past["left"]["measurements"] == 62
        assert "two or more" in failed(session, "compare", plans=[other, other])

    def test_apply_saves_the_network(self, session, tmp_path):
        """The folder loads, has the plan's cost, and lies in the workspace."""
        found = answered(session, "apply", plan=ONE_SHOT, name="first")
        network = pp.load(tmp_path / "work" / found["folder"], lambda: subject().model)
        assert pp.trace(network, session.task.inputs, probe=False).macs == session._state.plan(ONE_SHOT).macs
        assert "in the workspace already" in failed(session, "apply", plan=ONE_SHOT, name="first")

    def test_without_data_only_time_is_measured(self, tmp_path):
        """The one-shot plan is by magnitude, and a loss is an error that says what is missing."""
        with Session.open(task(data=False), tmp_path / "w") as opened:
            assert answered(opened, "describe")["can_measure"] == ["seconds"]
            assert "calibration_batches()" in failed(opened, "measure", plan="p0")
            assert "taylor" in failed(opened, "score", scorer="taylor")
            assert answered(opened, "apply", plan="p0", name="n")["loss"] is None


class TestGuards:
    """What no call can do."""

    def test_no_plan_above_the_budget(self, session):
        """A larger target is rejected, and every plan is within the session's."""
        assert "above the session's budget" in failed(session, "plan", target=0.7)
        assert answered(session, "plan", target=0.5)["macs"] <= session.task.budgets["macs"].limit

    def test_the_session_limits_stay(self, tmp_path):
        """A bound that the operator set cannot be changed by a call."""
        network = subject()
        task = PruningTask.of(network.model, network.example_inputs, 0.6, floors={"blocks.0": 0.9})
        with Session.open(task, tmp_path / "w") as opened:
            assert "cannot be changed" in failed(opened, "plan", floors={"blocks.0": 0.1})
            widths = answered(opened, "plan", floors={"blocks.*": 0.1})["widths"]
            inner = opened.task.graph.block_by_id["blocks.0"].inner[0]
            assert widths.get(inner, (24, 24))[1] >= 0.9 * 24

    def test_a_plan_worse_than_one_shot_is_not_saved(self, session, tmp_path):
        """The guard measures both plans and saves nothing."""
        losses = {}
        for seed, block in enumerate(["blocks.0", "blocks.1", "blocks.2", "blocks.3"]):
            scores = {name: float(name == block) for name in session.task.graph.block_by_id}
            ranking = answered(session, "score", scores=scores, strength=5)["ranking"]
            plan = answered(session, "plan", ranking=ranking)["plan"]
            losses[plan] = answered(session, "measure", plan=plan)["loss"]
            assert seed < 4
        one_shot = answered(session, "measure", plan=ONE_SHOT)["loss"]
        worst = max(losses, key=losses.get)
        assert losses[worst] > one_shot, "the case must have a worse plan"
        assert "not saved" in failed(session, "apply", plan=worst, name="bad")
        assert not (tmp_path / "work" / "networks").exists()

    def test_a_plan_that_is_better_by_chance_is_not_saved(self, tmp_path):
        """A lower mean is not enough: the difference has to exceed twice its standard error over the held-out batches."""
        network = subject()
        batches = [(batch, 1.0) for batch in network.batches]

        def loss_fn(model, weighed):
            return weighed[1] * network.loss_fn(model, weighed[0])

        def measured(folder, *weights):
            held_out = [(network.batches[0], weight) for weight in weights]
            task = PruningTask.of(network.model, network.example_inputs, 0.6, batches=batches, held_out=held_out, loss_fn=loss_fn)
            with Session.open(task, tmp_path / folder) as opened:
                scores = {name: float(name == "blocks.1") for name in opened.task.graph.block_by_id}
                ranking = answered(opened, "score", scores=scores, strength=5)["ranking"]
                plan = answered(opened, "plan", ranking=ranking)["plan"]
                answered(opened, "measure", plan=ONE_SHOT)
                found = answered(opened, "measure", plan=plan)
                return found, opened.call("apply", {"plan": plan, "name": "n"}).content

        first, single = measured("first", 1.0)
        assert first["standard_error"] is None
        assert ("network" in single) == (first["loss_minus_one_shot"] <= 0), (
            "a single batch has no standard error, so the lower loss decides"
        )
        better = -1.0 if first["loss_minus_one_shot"] > 0 else 1.0
        found, saved = measured("sure", better, better, 0.9 * better)
        assert found["loss_minus_one_shot"] < -2 * found["standard_error"] < 0
        assert saved["network"] == "n"
        found, rejected = measured("chance", better, -0.9 * better, better)
        assert -2 * found["standard_error"] < found["loss_minus_one_shot"] < 0
        assert found["loss"] < found["one_shot"]["loss"]
        assert "may be chance" in rejected["message"]
        assert not (tmp_path / "chance" / "networks").exists()

    @pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..", ".", "", "x" * 65, "a\0b", "~", "C:\\x"])
    def test_names_are_plain(self, session, tmp_path, name):
        """A name that could lead elsewhere is rejected."""
        assert "name has up to" in failed(session, "apply", plan=ONE_SHOT, name=name)

    def test_links_do_not_lead_out(self, session, tmp_path):
        """A link in the workspace is not followed to another folder."""
        outside = tmp_path / "outside"
        outside.mkdir()
        (tmp_path / "work" / "networks").symlink_to(outside)
        assert "leads out of the workspace" in failed(session, "apply", plan=ONE_SHOT, name="n")
        assert not list(outside.iterdir())

    def test_a_folder_of_somebody_else_is_rejected(self, tmp_path):
        """A workspace with other files is not used."""
        (tmp_path / "thesis.txt").write_text("x")
        with pytest.raises(StorageError, match="holds files but no session"), Session.open(task(), tmp_path):
            pass

    def test_calls_measurements_and_networks_are_limited(self, tmp_path):
        """Each limit has its message, and history is still answered after the last call."""
        with Session.open(task(), tmp_path / "w", Bounds(calls=6, measurements=1, networks=1)) as opened:
            answered(opened, "measure", plan="p0")
            assert "measurements of this session are used up" in failed(opened, "measure", plan="p0", recovery=True)
            answered(opened, "apply", plan="p0", name="a")
            assert "networks of this session are saved" in failed(opened, "apply", plan="p0", name="b")
            answered(opened, "describe")
            answered(opened, "describe")
            assert "calls of this session are used up" in failed(opened, "describe")
            assert answered(opened, "history")["left"] == {"calls": 0, "measurements": 0, "networks": 0}

    def test_time_is_limited(self, tmp_path):
        """A call that takes too long stops before the next batch, and counts as a measurement."""
        with Session.open(task(), tmp_path / "w") as opened:
            pass
        with Session.open(task(), tmp_path / "w", Bounds(seconds_per_call=1e-9)) as opened:
            assert "longer than its limit" in failed(opened, "measure", plan="p0")
            assert "longer than its limit" in failed(opened, "score", scorer="taylor")
            assert answered(opened, "history")["left"]["measurements"] == 63

    def test_arguments_and_answers_are_limited(self, tmp_path):
        """Long arguments are rejected and not logged; long answers are shortened and stay JSON."""
        with Session.open(task(), tmp_path / "w", Bounds(argument_chars=1000, answer_chars=2000)) as opened:
            assert "characters" in failed(opened, "plan", keep=["x" * 2000])
            answers = [opened.call(tool, {}) for tool in TOOLS] + [opened.call("price", {"widths": {"blocks": 0.5}})]
            assert all(len(answer.text) <= 2000 for answer in answers)
            assert all(isinstance(loads(answer.text), dict) for answer in answers)
        assert log_lines(tmp_path / "w")[2]["arguments"] is None

    @pytest.mark.parametrize("limit", [{"calls": 0}, {"measurements": 1.5}, {"seconds_per_call": float("inf")}, {"answer_chars": 10}])
    def test_limits_make_sense(self, limit):
        """A limit that is none is an error."""
        with pytest.raises(InputError):
            Bounds(**limit)


class TestLog:
    """What is kept, and what it is good for."""

    def test_a_replay_gives_the_same_bytes(self, session, tmp_path):
        """Without a model, the same calls get the same answers, errors included; another call is named and changes nothing."""
        calls = [
            ("describe", {}),
            ("plan", {"target": 0.9}),
            ("score", {"scores": {"blocks.1": 0.9}}),
            ("plan", {"ranking": "r1"}),
            ("measure", {"plan": "p1", "what": ["loss", "seconds"]}),
            ("nonsense", {}),
            ("apply", {"plan": "p0", "name": "n"}),
            ("history", {}),
        ]
        answers = [session.call(*call) for call in calls]
        replay = Replay(tmp_path / "work")
        assert "recording is describe({})" in replay.call("history", {}).content["message"]
        assert [replay.call(*call) for call in calls] == answers
        assert replay.left == 0
        assert "all were replayed" in replay.call("history", {}).content["message"]

    def test_a_session_goes_on(self, tmp_path):
        """What was scored, planned and measured is there after it was closed, and is not measured again."""
        with Session.open(task(), tmp_path / "w") as opened:
            ranking = answered(opened, "score", scores={"blocks.1": 0.9})["ranking"]
            plan = answered(opened, "plan", ranking=ranking, target=0.5)["plan"]
            loss = answered(opened, "measure", plan=plan)["loss"]
            before = opened.call("history").content
        with Session.open(task(), tmp_path / "w") as opened:
            after = opened.call("history").content
            again = answered(opened, "measure", plan=plan)
            assert (again["loss"], again["measured_before"]) == (loss, True)
            assert answered(opened, "plan", ranking=ranking, target=0.5)["plan"] == plan
        assert {**before, "left": 0} == {**after, "left": 0}

    def test_another_task_is_rejected(self, tmp_path):
        """A workspace belongs to one network, goal and data."""
        with Session.open(task(), tmp_path / "w"):
            pass
        with pytest.raises(JournalError, match=r"target was 0\.6, now 0\.5"), Session.open(task(target=0.5), tmp_path / "w"):
            pass

    def test_one_process_at_a_time(self, session, tmp_path):
        """A second opening of the same workspace is rejected."""
        with pytest.raises(StorageError, match="in use"), Session.open(session.task, tmp_path / "work"):
            pass

    def test_no_secret_and_no_path(self, session, tmp_path, monkeypatch):
        """Keys in arguments and errors are masked in log and answer, and absolute paths are shortened."""
        monkeypatch.setenv("SOME_API_KEY", "correct-horse-battery")
        for text in ("correct-horse-battery", "sk-abcdefghijkl", "api_key=hunter2hunter2", f"{tmp_path}/net.py"):
            for call in (("plan", {"keep": [text]}), ("measure", {"plan": text}), ("score", {"scores": {text: 1.0}}), (text, {})):
                session.call(*call)
        content = "".join(path.read_text() for path in (tmp_path / "work").rglob("*.json*"))
        for secret in ("correct-horse", "abcdefghijkl", "hunter2", str(tmp_path), str(Path.home()) + "/"):
            assert secret not in content

    def test_an_interruption_leaves_a_usable_session(self, tmp_path):
        """Ctrl-C in a measurement passes through, and the next call is answered."""

        def broken(model, batch):
            if broken.armed:
                raise KeyboardInterrupt
            return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

        broken.armed = False
        network = subject()
        own = PruningTask.of(network.model, network.example_inputs, 0.6, batches=network.batches, loss_fn=broken)
        with Session.open(own, tmp_path / "w") as opened:
            broken.armed = True
            with pytest.raises(KeyboardInterrupt):
                opened.call("measure", {"plan": "p0"})
            broken.armed = False
            assert answered(opened, "measure", plan="p0")["loss"] > 0

    def test_torn_files_are_named(self, tmp_path):
        """A missing ranking or a damaged log is an error that names it."""
        with Session.open(task(), tmp_path / "w") as opened:
            opened.call("describe")
        (tmp_path / "w" / "rankings" / "r0.json").unlink()
        with pytest.raises(JournalError, match=r"r0\.json"), Session.open(task(), tmp_path / "w"):
            pass
        log = tmp_path / "w" / "session.jsonl"
        with log.open("a") as file:
            file.write('{"what": "ca')
        assert len(Replay(tmp_path / "w").calls) == 1
        log.write_text("no json\n" + log.read_text())
        with pytest.raises(JournalError):
            Replay(tmp_path / "w")
        log.unlink()
        with pytest.raises(StorageError, match="holds no session"):
            Replay(tmp_path / "w")
