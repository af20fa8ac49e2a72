"""Agreement, centres, and what they are worth: closed forms, brute force, and a simulated proxy of known skill and noise."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from llm import SCORERS, ask, small_graph
from scipy.stats import kendalltau

import proxyprune as pp
from proxyprune.errors import UnreliableRankingError
from proxyprune.proxy.answers.agreement import concordance, kendall_tau, mean_pairwise_tau, measure_agreement, mid_ranks
from proxyprune.proxy.answers.centre import borda, disagreements, kemeny, kemeny_order
from proxyprune.testing import FakeLLMServer, ReceivedRequest, SimulatedProxy, SimulatedScorer, predicted_tau, residual_network

tables = (
    st.integers(2, 5)
    .flatmap(lambda items: st.lists(st.lists(st.integers(0, 10), min_size=items, max_size=items), min_size=2, max_size=5))
    .map(lambda rows: np.array(rows, dtype=float))
)


class TestAgreement:
    """Kendall's tau-b and W, with ties."""

    @given(tables)
    @settings(max_examples=300)
    def test_tau_is_scipys(self, table):
        """Our tau-b is that of scipy, and 0 where that has no value."""
        expected = kendalltau(table[0], table[1]).statistic
        assert kendall_tau(table[0], table[1]) == pytest.approx(0.0 if math.isnan(expected) else expected, abs=1e-12)

    @given(tables)
    @settings(max_examples=300)
    def test_w_from_rank_correlations(self, table):
        """Without ties, W = (1 + (k - 1) mean Spearman rho) / k; with ties it stays between 0 and 1."""
        w = float(concordance(mid_ranks(table)))
        assert -1e-12 <= w <= 1 + 1e-12
        if all(len(set(row)) == len(row) for row in table.tolist()):
            k = len(table)
            rho = np.corrcoef(mid_ranks(table))
            mean = (rho.sum() - k) / (k * (k - 1))
            assert w == pytest.approx((1 + (k - 1) * mean) / k)

    def test_full_agreement_and_contradiction(self):
        """Equal answers give 1; two opposite ones give tau -1 and W 0."""
        row = np.arange(6.0)
        assert measure_agreement(np.array([row, row, row]), np.full((3, 6), np.nan), 0).concordance == pytest.approx(1.0)
        opposite = measure_agreement(np.array([row, row[::-1]]), np.full((2, 6), np.nan), 0)
        assert opposite.tau == pytest.approx(-1.0)
        assert opposite.concordance == pytest.approx(0.0)
        assert opposite.verdict(2)

    def test_random_answers_are_called_chance(self):
        """Of 300 sets of random answers about one in twenty passes for agreement, as the limit says."""
        rng = np.random.default_rng(0)
        passed = sum(
            measure_agreement(rng.integers(0, 11, (5, 12)).astype(float), np.full((5, 12), np.nan), seed).verdict(5) is None
            for seed in range(300)
        )
        assert 4 <= passed <= 28  # 15 +- 3.4 standard deviations of a binomial

    def test_answers_that_follow_the_list_are_noticed(self):
        """Scores that lean on the order of the list more than on each other are refused although they agree a little."""
        rng = np.random.default_rng(1)
        truth = rng.standard_normal(30)
        listed = np.array([rng.permutation(30) for _ in range(8)], dtype=float)
        answers = np.round(5 + 0.9 * truth + 0.1 * (listed - 14.5) + 0.5 * rng.standard_normal((8, 30)))
        found = measure_agreement(answers, listed, 0)
        assert found.chance < 0.05
        assert "order in which the blocks were listed" in str(found.verdict(8))
        assert measure_agreement(np.round(5 + 2 * truth + rng.standard_normal((8, 30))), listed, 0).verdict(8) is None


class TestCentres:
    """Borda and Kemeny."""

    @given(tables)
    @settings(max_examples=150)
    def test_kemeny_is_the_best_of_all_orders(self, table):
        """For few items, no order disagrees less with the answers."""
        found = kemeny_order(table, borda(table, np.ones(table.shape[1])))
        best = min(disagreements(order, table) for order in itertools.permutations(range(table.shape[1])))
        assert disagreements(found, table) == best

    def test_the_search_for_many_items_is_no_worse_than_its_start(self):
        """Local search from Borda's order never ends with more disagreements than it began with, and nearly always finds the best."""
        rng = np.random.default_rng(0)
        for _ in range(10):
            answers = np.round(np.clip(5 + 2 * (rng.standard_normal(30) + rng.standard_normal((5, 30))), 0, 10))
            start = borda(answers, np.ones(30))
            by_borda = tuple(sorted(range(30), key=lambda item, start=start: (-start[item], item)))
            assert disagreements(kemeny_order(answers, start), answers) <= disagreements(by_borda, answers)

    @given(tables, st.permutations(range(5)))
    @settings(max_examples=100)
    def test_the_order_of_answers_does_not_matter(self, table, order):
        """A centre is the same for any order of the samples."""
        cost = np.arange(table.shape[1], dtype=float)
        mixed = table[[row for row in order if row < len(table)]]
        for centre in (borda, kemeny):
            assert np.array_equal(centre(table, cost), centre(mixed, cost))

    def test_ties(self):
        """Equal mean ranks are decided by raw scores, then by cost; what is equal in all of that stays tied."""
        by_raw = borda(np.array([[10.0, 9.0, 0.0], [8.0, 10.0, 0.0]]), np.ones(3))
        assert by_raw[1] > by_raw[0] > by_raw[2]
        by_cost = borda(np.array([[5.0, 5.0, 1.0]]), np.array([3.0, 2.0, 1.0]))
        assert by_cost[1] > by_cost[0] > by_cost[2]
        assert len(set(borda(np.array([[5.0, 5.0, 1.0]]), np.ones(3)))) == 2

    def test_unanimous_answers_keep_their_order(self):
        """Values run from 0 to 1."""
        for centre in (borda, kemeny):
            assert centre(np.array([[1.0, 5.0, 9.0]] * 3), np.ones(3)).tolist() == [0.0, 0.5, 1.0]


def simulated(noise: float, skill: float, samples: int, repeats: int, items: int = 40) -> tuple[float, float]:
    """Mean tau of the centre with the truth, and mean confidence, over repeats with fresh truths."""
    taus, confidences = [], []
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        truth = rng.standard_normal(items)
        proxy = SimulatedProxy(tuple(truth), skill, noise, seed=repeat)
        answers = np.array([list(eval_scores(proxy, items, sample)) for sample in range(samples)], dtype=float)
        taus.append(kendall_tau(borda(answers, np.ones(items)), truth))
        confidences.append(mean_pairwise_tau(answers) if samples > 1 else 1.0)
    return float(np.mean(taus)), float(np.mean(confidences))


def eval_scores(proxy: SimulatedProxy, items: int, sample: int) -> list[int]:
    lines = "\n".join(f"b{place:02d} at {place + 1}/{items} conv" for place in range(items))
    text = proxy(ReceivedRequest("chat", {}, {"messages": [{"role": "user", "content": f"sample {sample}\n# List of blocks\n{lines}"}]}))
    return list(json.loads(text)["scores"].values())


class TestSimulatedProxy:
    """What aggregation and confidence are worth is known in advance."""

    @pytest.mark.parametrize(("noise", "skill"), [(0.5, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, 0.8)])
    @pytest.mark.parametrize("samples", [1, 3, 9])
    def test_aggregation_raises_tau_by_the_predicted_amount(self, noise, skill, samples):
        """tau(k) = 2/pi arcsin(skill / sqrt(1 + noise^2 / k)), up to the few hundredths that scores from 0 to 10 cost."""
        tau, _ = simulated(noise, skill, samples, repeats=30)
        assert tau == pytest.approx(predicted_tau(samples, noise, skill), abs=0.05)

    def test_confidence_tracks_the_true_tau(self):
        """Confidence is 2/pi arcsin(1 / (1 + noise^2)), so with full skill it falls as the true tau falls."""
        rows = [simulated(noise, 1.0, 5, repeats=20) for noise in (0.3, 0.7, 1.2, 2.0, 4.0)]
        assert [tau for tau, _ in rows] == sorted((tau for tau, _ in rows), reverse=True)
        for (_, confidence), noise in zip(rows, (0.3, 0.7, 1.2, 2.0, 4.0), strict=True):
            assert confidence == pytest.approx(predicted_tau(0, noise), abs=0.08)  # ties of scores 0..10 raise tau-b a little

    def test_confidence_says_nothing_about_a_shared_mistake(self):
        """With little skill and little noise the answers agree, and are wrong: confidence is no truth."""
        tau, confidence = simulated(0.3, 0.4, 5, repeats=20)
        assert confidence > 0.7
        assert tau == pytest.approx(predicted_tau(5, 0.3, 0.4), abs=0.06)

    @pytest.mark.parametrize("scorer", SCORERS)
    def test_the_same_over_http(self, scorer):
        """The proxy behind the fake server gives the same ranking as inside the process, whatever the protocol."""
        proxy = SimulatedProxy([block.macs for block in small_graph().blocks], noise=0.3)
        direct = pp.score(small_graph(), SimulatedScorer(proxy=proxy, samples=3, max_samples=3))
        with FakeLLMServer(answer=proxy) as server:
            assert ask(server, scorer, samples=3, max_samples=3).scores == direct.scores


class TestSampling:
    """How many samples are asked, and what is made of them."""

    def scorer(self, noise: float, **changed: object) -> SimulatedScorer:
        truth = [block.macs for block in small_graph().blocks]
        return SimulatedScorer(proxy=SimulatedProxy(truth, noise=noise), **changed)

    def test_stops_when_the_centre_is_steady(self):
        """A sure proxy is asked the fewest times, an unsure one the most."""
        assert "5 times" in pp.score(small_graph(), self.scorer(0.0)).notes[0]
        assert "9 times" in pp.score(small_graph(), self.scorer(3.0)).notes[0]

    @pytest.mark.parametrize("centre", ["borda", "kemeny"])
    def test_concurrency_does_not_change_the_ranking(self, centre):
        """One at a time or eight: the same bytes."""
        one, eight = (pp.score(small_graph(), self.scorer(1.0, centre=centre, concurrency=n)).to_dict() for n in (1, 8))
        assert one == eight

    def test_one_answer_is_never_reliable(self):
        """Nothing says whether it would come again."""
        ranking = pp.score(small_graph(), self.scorer(0.0, samples=1, max_samples=1))
        assert ranking.confidence is None
        assert "at least 2 samples" in str(ranking.unreliable)

    def test_planning_refuses_an_unreliable_ranking(self):
        """Unless it is accepted by name; the plan then says so."""
        model = residual_network().model
        ranking = dataclasses.replace(pp.score(small_graph(), "random"), unreliable="It was made up.")
        with pytest.raises(UnreliableRankingError, match="It was made up"):
            pp.make_plan(small_graph(), ranking, 0.6, model=model)
        plan = pp.make_plan(small_graph(), ranking, 0.6, model=model, accept_unreliable=True)
        assert any("It was made up" in note for note in plan.notes)
        scorer = self.scorer(0.0, samples=1, max_samples=1)
        with pytest.raises(UnreliableRankingError):
            pp.prune(model, residual_network().example_inputs, 0.6, scorer)
        assert pp.prune(model, residual_network().example_inputs, 0.6, scorer, accept_unreliable=True).plan.notes

    def test_a_fallback_takes_the_place_of_an_unreliable_ranking(self):
        """And says why."""
        ranking = pp.score(small_graph(), self.scorer(0.0, samples=1, max_samples=1, fallback="magnitude"), model=residual_network().model)
        assert ranking.scorer == "magnitude (fallback of simulated)"
        assert ranking.unreliable is None
        assert "at least 2 samples" in ranking.notes[0]
