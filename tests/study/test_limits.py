"""Nothing that costs more than the user allows is drawn, probed or trained."""

import time

import optuna
import pytest

from autotl import hookimpl
from autotl.backbones.catalogue import Catalogue
from autotl.contracts import DataFacts
from autotl.engine import latency
from autotl.engine.precision import Arithmetic
from autotl.engine.stage_times import by_flops
from autotl.errors import StudyError
from autotl.plan import DataRef, Head
from autotl.report.frames import leaderboard
from autotl.study.costs import amount, count
from autotl.study.limits import Limits
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.space import SearchContext, smallest_heads
from autotl.study.suggestions import Suggestions, limits_of
from autotl.study.watch import Silent
from autotl.study.work import Work
from autotl.testing.lab import linear_probe
from autotl.tracking.probe import ProbeRow, read_probe

# tiny:net at 32 px: the convolutions of 3 x 3 have 8, 12 and 16 channels at 32 x 32, 15 x 15 and 7 x 7 places, the
# first two with batch norm; then a linear head for 3 classes.
PARAMETERS = {
    "0.2": (3 * 9 + 1) * 8 + 2 * 8 + (8 + 1) * 3,
    "1.2": (3 * 9 + 1) * 8 + 2 * 8 + (8 * 9 + 1) * 12 + 2 * 12 + (12 + 1) * 3,
    "2.1": (3 * 9 + 1) * 8 + 2 * 8 + (8 * 9 + 1) * 12 + 2 * 12 + (12 * 9 + 1) * 16 + (16 + 1) * 3,
}
FLOPS = {
    "0.2": 2 * (27 * 8 * 32**2 + 8 * 3),
    "1.2": 2 * (27 * 8 * 32**2 + 72 * 12 * 15**2 + 12 * 3),
    "2.1": 2 * (27 * 8 * 32**2 + 72 * 12 * 15**2 + 108 * 16 * 7**2 + 16 * 3),
}


class Recorder(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def catalogue(host, tmp_path):
    return Catalogue(host, tmp_path / "cache")


def cuts(catalogue, heads=(), name="tiny:net", poolings=(), **most):
    return Limits(catalogue, 3, most, smallest_heads(heads, poolings)).cuts(name, catalogue.card(name).input)


@pytest.mark.parametrize(("limit", "costs"), [("max_params", PARAMETERS), ("max_flops", FLOPS)])
def test_a_cut_that_costs_exactly_the_limit_is_allowed(catalogue, limit, costs):
    names = tuple(costs)
    assert cuts(catalogue) == names
    for number, cost in enumerate(costs.values(), 1):
        assert cuts(catalogue, **{limit: cost}) == names[:number]
        assert cuts(catalogue, **{limit: cost - 1}) == names[: number - 1]


def test_every_limit_holds_and_every_kind_of_head_must_fit(catalogue):
    assert cuts(catalogue, max_params=PARAMETERS["2.1"], max_flops=FLOPS["1.2"]) == ("0.2", "1.2")
    # The smallest hidden layer, of 64 units, after the first stage: (8 + 1) · 64 + (64 + 1) · 3 parameters.
    with_mlp = PARAMETERS["0.2"] - (8 + 1) * 3 + (8 + 1) * 64 + (64 + 1) * 3
    # Without pooling after the last stage, 16 · 7² features; those after the first are too many for that.
    flat = PARAMETERS["2.1"] + 16 * (7**2 - 1) * 3
    assert cuts(catalogue, ("linear",), poolings=("flatten",), max_params=flat) == ("0.2", "2.1")
    assert cuts(catalogue, ("linear",), poolings=("flatten",), max_params=flat - 1) == ("0.2",)
    assert cuts(catalogue, ("mlp",), max_params=with_mlp) == ("0.2",)
    assert cuts(catalogue, ("mlp",), max_params=with_mlp - 1) == ()


@pytest.mark.parametrize(("fixed", "width"), [({}, 64), ({"head_width_log2": 9}, 512)])
def test_a_width_that_the_user_fixed_must_fit(catalogue, fixed, width):
    with_mlp = PARAMETERS["0.2"] - (8 + 1) * 3 + (8 + 1) * width + (width + 1) * 3
    for most, found in ((with_mlp, ("0.2",)), (with_mlp - 1, ())):
        settings = Settings.of({"data": ".", "heads": "mlp", "max_params": most, "set": fixed})
        assert limits_of(settings, 3, catalogue, {}).cuts("tiny:net", catalogue.card("tiny:net").input) == found


def test_what_is_beyond_is_said_in_words(catalogue):
    limits = Limits(catalogue, 3, {"max_params": 200, "max_flops": 1000})
    place = "tiny:net", catalogue.card("tiny:net").input
    assert str(limits) == "--max-params 200 and --max-flops 1 k"
    assert limits.least(*place) == "267 parameters and 442 k FLOPs per image"
    assert limits.excess(*place, "1.2", Head(pooling="avg")) == "1.18 k parameters and 831 k FLOPs per image"
    assert Limits(catalogue, 3, {"max_params": 1179}).excess(*place, "1.2", Head(pooling="avg")) == ""


@pytest.mark.parametrize(
    ("text", "number"),
    [("5M", 5_000_000), ("600 m", 600_000_000), ("1.5G", 1_500_000_000), ("300k", 300_000), (5e6, 5_000_000), ("1", 1)],
)
def test_amounts(text, number):
    assert amount(text) == number == Settings.of({"data": ".", "max_params": text}).max_params


@pytest.mark.parametrize("text", ["five", "5 MB", "-5M", "0", "", "1e999", "5,000", "5_000", True])
def test_what_is_not_an_amount_is_refused(text):
    with pytest.raises(StudyError, match=r"max_flops=.*(5M|at least 1)"):
        Settings.of({"data": ".", "max_flops": text})


@pytest.mark.parametrize(
    ("number", "says"),
    [(0, "0"), (999, "999"), (999_700, "1 M"), (1234567, "1.23 M"), (2.03e12, "2.03 T"), (5e15, "5e+03 T")],
)
def test_large_numbers_are_counted_in_thousands(number, says):
    assert count(number) == says


def search(host, stripes, watcher=None, **values):
    settings = {"backbones": ("tiny:net",), "reruns": 0, "refit": False, "prune": False, "device": "cpu", **values}
    return Search(Settings.of({"data": stripes, **settings}), host, watcher or Silent(), time.monotonic())


def searched(host, stripes, watcher=None, **values):
    made = search(host, stripes, watcher, **values)
    return made, made.run()


def test_a_search_stays_within_its_limits(host, stripes):
    """All strategies, with heads of every width, the probe and the winner; also when it goes on with more trials."""
    watcher = Recorder()
    options = {"backbones": ("tiny:net", "tiny:deep", "autotl:pvt_v2"), "heads": ("linear", "mlp")}
    limits = {"max_params": "2400", "max_flops": "900k"}
    made, result = searched(host, stripes, watcher, trials=16, compare=False, **options, **limits)
    notes = [note for note in watcher.notes if "Skipped" in note]
    assert len(notes) == 1 and "--max-params 2.4 k and --max-flops 900 k" in notes[0] and "tiny" not in notes[0]
    assert "autotl:pvt_v2 " in notes[0]
    assert {row.cut for row in read_probe(made.folder)} == {"0.2", "1.2"}
    searched(host, stripes, trials=20, compare=False, **options)  # the limits are those of the study
    records = list(made.folder.log.records())
    assert len(records) == 20 and {record.state for record in records} == {"complete"}
    assert {record.params["strategy"] for record in records} >= {"full", "scratch", "lp-ft", "linear-probe"}
    assert max(record.metrics["parameters"] for record in records) <= 2400
    assert max(record.metrics["flops"] for record in records) <= 900_000
    assert {record.plan.cut for record in records} == {"0.2", "1.2"}
    assert {record.plan.cut for record in records if record.params["strategy"] in ("full", "scratch")} == {"1.2"}
    assert {record.plan.head.width for record in records} > {None, 64}  # the widest are 512
    assert made.folder.definition.limits == {"max_params": 2400, "max_flops": 900_000}
    assert result.final.cut in ("0.2", "1.2")


def test_other_limits_are_another_study(host, stripes):
    searched(host, stripes, trials=1, compare=False, max_flops="900k")
    with pytest.raises(StudyError, match="other settings: limits max_flops 900000 → 500000. Use the same settings, or"):
        searched(host, stripes, trials=2, compare=False, max_flops="500k")


def test_without_any_cut_within_the_limits_there_is_no_study(host, stripes):
    with pytest.raises(StudyError) as raised:
        searched(host, stripes, max_flops=FLOPS["0.2"] - 1)
    assert str(raised.value) == (
        "No backbone has a cut within --max-flops 442 k. With its head, the cheapest cut of each has: tiny:net 442 k "
        "FLOPs per image. Raise the limit, or name other --backbones."
    )


def test_latency_is_measured_once_for_a_study_and_is_a_cost_of_its_trials(host, stripes, monkeypatch):
    monkeypatch.setattr(latency, "measure", lambda stages, input, device: (1.0, 2.0, 4.0))
    options = {"compare": False, "strategies": ("linear-probe", "full"), "reruns": 1}
    made, result = searched(host, stripes, trials=6, max_latency_ms=2, **options)
    assert made.folder.definition.latency == {"tiny:net at 32 px": (1.0, 2.0, 4.0)}
    monkeypatch.setattr(latency, "milliseconds", lambda *where: 1 / 0)
    searched(host, stripes, trials=8, **options)
    records = list(made.folder.log.records())
    assert len(records) == 8 and {record.plan.cut for record in records} == {"0.2", "1.2"}
    ends = {"0.2": 1.0, "1.2": 2.0}
    assert all(record.metrics["latency_ms"] == ends[record.plan.cut] for record in records)
    assert result.best.metrics["latency_ms"] == ends[result.best.plan.cut]
    assert set(leaderboard(made.folder)["latency_ms"]) == {1.0, 2.0}
    monkeypatch.setattr(latency, "milliseconds", lambda *where: (1.0, 2.0, 4.0))
    says = "No backbone has a cut within --max-latency-ms 0.5. .* has: tiny:net 1 ms per image. Raise the limit"
    with pytest.raises(StudyError, match=says):
        searched(host, stripes, study="other", max_latency_ms=0.5)


def test_without_need_no_latency_is_measured(host, stripes, monkeypatch):
    monkeypatch.setattr(latency, "milliseconds", lambda *where: 1 / 0)
    made, _ = searched(host, stripes, trials=1, compare=False)
    assert "latency_ms" not in leaderboard(made.folder)


@pytest.mark.parametrize(("most", "chosen"), [({}, "tiny:deep"), ({"max_flops": FLOPS["0.2"]}, "tiny:net")])
def test_the_first_training_is_estimated_up_to_the_last_cut_within_the_limits(host, stripes, monkeypatch, most, chosen):
    """One image through the whole `tiny:net`, the best backbone, takes 1.5 s; through its first stage 44 % of them."""
    seconds = {"tiny:net": 1.5, "tiny:deep": 0.1}

    def stage_times(suggestions, name):
        return by_flops(suggestions.bench.catalogue.info(name), seconds[name])

    monkeypatch.setattr(Suggestions, "stage_times", stage_times)
    options = {"strategies": ("full", "linear-probe"), "backbones": tuple(seconds), "budget": 1_200.0, **most}
    made = search(host, stripes, **options)
    with made.folder.lock():
        opened = made.opening.open()
    work = Work(opened, made._crew(opened, None))
    rows = [ProbeRow("tiny:net", "0.2", "avg", 0.9), ProbeRow("tiny:deep", "0.2", "avg", 0.8)]
    (guess,) = work._first_guesses(work._guesses(), rows, (), 0).values()
    assert guess["backbone"] == chosen


class Own:
    """Takes features of two stages, whose head is larger than that of one."""

    def suggest(self, trial, context):
        first, cut = context.backbone().names[:2]
        head = Head(pooling="avg", taps=(first,))
        return context.plan(cut=cut, head=head, phases=[linear_probe(cut)], input=context.input())


class OwnPlugin:
    @hookimpl
    def register_strategies(self, register):
        register("own", Own, summary="For a test")


def test_a_plan_that_is_beyond_the_limits_by_its_head_is_not_trained(host, stripes):
    host.add(OwnPlugin(), "own-plugin")
    options = {"strategies": ("own", "linear-probe"), "trials": 5, "compare": False}
    limit = PARAMETERS["1.2"] + 8 * 3
    for study, most, states in (("exact", limit, {"complete"}), ("less", limit - 1, {"pruned"})):
        made, result = searched(host, stripes, study=study, max_params=most, **options)
        own = [record for record in made.folder.log.records() if record.params["strategy"] == "own"]
        assert {record.state for record in own} == states
    assert {record.reason for record in own} == {"not trained: it has 1.2 k parameters, beyond --max-params 1.2 k"}
    assert not own[0].epochs and result.best.strategy == "linear-probe"


class Wrong(Own):
    def suggest(self, trial, context):
        return super().suggest(trial, context).model_copy(update={"cut": "no such stage"})


def test_an_invalid_plan_is_the_strategy_s_mistake_with_limits_too(host, stripes):
    class Plugin:
        @hookimpl
        def register_strategies(self, register):
            register("wrong", Wrong, summary="For a test")

    host.add(Plugin(), "wrong-plugin")
    options = {"strategies": ("wrong", "linear-probe"), "trials": 4, "compare": False}
    made, _ = searched(host, stripes, max_params="5k", **options)
    wrong = [record for record in made.folder.log.records() if record.params["strategy"] == "wrong"]
    assert wrong and {record.state for record in wrong} == {"failed"}
    assert "suggested a plan that cannot be trained: Unknown stage" in wrong[0].reason and wrong[0].by_plugin


RESNET = "autotl:resnet10"


@pytest.fixture
def context_of(catalogue):
    """`context_of(params, **limits)`: the context of a trial on large images with these parameters."""

    def make(params, heads=("linear", "mlp"), **most):
        return SearchContext(
            optuna.trial.FixedTrial(params),
            catalogue=catalogue,
            backbones=(RESNET,),
            drawn={},
            data=DataFacts(
                classes=3, train_images=50, smallest_class=9, largest_class=9, has_early_stop=True, image_size=400
            ),
            data_ref=DataRef(fingerprint="f", split_seed=7),
            seed=7,
            arithmetic=lambda name: Arithmetic(),
            heads=heads,
            limits=Limits(catalogue, 3, most, smallest_heads(heads)),
        )

    return make


def test_a_trial_draws_among_the_cuts_and_inputs_within_the_limits(catalogue, context_of):
    """A larger input only if the cut that was drawn stays within the limit there."""
    small, *_, large = catalogue.inputs(RESNET)
    names = catalogue.info(RESNET).names
    deep, shallow = names[-2], names[0]

    def cost(input, cut):
        info = catalogue.info(RESNET, input)
        return info.flops(cut) + 2 * 3 * info.stage(cut).channels

    limit = cost(small, deep)
    assert cost(large, shallow) <= limit < min(cost(large, deep), cost(small, names[-1]))

    def drawn(share, ask):
        context = context_of({"backbone": RESNET, "cut": share, "input_size": 1.0}, ("linear",), max_flops=limit)
        return ask(context), context.backbone().names

    assert drawn(1.0, lambda context: (context.cut(), context.input())) == ((deep, small), names[:-1])
    assert drawn(0.0, lambda context: (context.cut(), context.input()))[0] == (shallow, large)
    # Without a cut that was drawn, or before it is, the input must suit the deepest one.
    assert drawn(0.0, lambda context: context.input())[0] == small
    assert drawn(0.0, lambda context: (context.input(), context.cut()))[0] == (small, shallow)


def test_a_head_that_would_be_too_wide_is_narrower(catalogue, context_of):
    info = catalogue.info(RESNET)
    cut, stage = info.names[0], info.stages[0]
    wide = {"backbone": RESNET, "pooling": "avg", "head_width_log2": 9, "input_size": 0.0}
    mlp = {width: stage.parameters + (stage.channels + 1) * width + (width + 1) * 3 for width in (64, 256, 512)}
    for most, width in ((mlp[512], 512), (mlp[512] - 1, 256), (mlp[256], 256), (mlp[64], 64)):
        assert context_of({**wide, "head": "mlp"}, max_params=most).head(cut) == Head(
            pooling="avg", kind="mlp", width=width
        )
