"""Runs searches with plugins that are broken in different ways.

    python tests/campaigns/broken_plugins.py [NAME ...]

Each is installed as pip does, beside working plugins, and used by a search in a separate process. The search has to
name the plugin, continue without it and end with a result; what a plugin prints must not be on standard output. Prints
how many searches did so, and exits with 1 unless all did. It takes some minutes, and is not part of `make test`.
"""

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

from autotl.host import Host
from autotl.report import terminal
from autotl.study import patience
from autotl.study.search import Search
from autotl.study.settings import Settings
from autotl.study.watch import Silent
from autotl.testing.lab import write_stripes

HANG = 240.0
"""Seconds after which a search counts as hanging."""
LOUD = "said by the plugin"
OUTCOMES = ("named and survived", "not named", "search ended", "hang")

HOOK = "from autotl import hookimpl\n{before}\n@hookimpl\ndef {name}: {body}\n"
STRATEGY = """
from autotl import Head, Phase, Training, hookimpl
from autotl.builtin import logistic

class Bad:
    {attributes}

    def suggest(self, trial, context):
        {body}

@hookimpl
def register_strategies(register):
    register("bad", Bad, summary="For a campaign")
"""
PROBE = """cut = context.cut()
        plan = context.plan(cut=cut, head=Head(pooling="avg"), phases=[logistic.probe(cut)])
        """
TRAIN = """cut = context.cut()
        training = Training(epochs=1, batch_size=16, head_lr=0.1)
        phase = Phase(method="gradient-descent", frozen=cut, training=training)
        return context.plan(cut=cut, head=Head(pooling="avg"), phases=[phase], augmentation=context.augmentation())"""
METHOD = """
import torch
from autotl import FittedHead, Head, Phase, hookimpl

class Method:
    {options}

    def fit(self, features, labels, classes, options, step):
        weight, bias = torch.zeros(classes, features.shape[1]), torch.zeros(classes)
        {body}

class Strategy:
    def suggest(self, trial, context):
        cut = context.cut()
        phase = Phase(method="bad", frozen=cut, options={{"strength": [0.1, 1.0]}})
        return context.plan(cut=cut, head=Head(pooling="avg"), phases=[phase])

@hookimpl
def register_methods(register):
    register("bad", Method, summary="For a campaign")

@hookimpl
def register_strategies(register):
    register("bad", Strategy, summary="For a campaign")
"""
AUGMENTATION = """
import torch
from autotl import Head, Phase, Training, hookimpl

class Augmentation:
    def suggest(self, trial, context):
        {suggest}

    def build(self, params):
        {build}

class Strategy:
    first_guess = {{"augmentation": "bad"}}

    def suggest(self, trial, context):
        {train}

@hookimpl
def register_augmentations(register):
    register("bad", Augmentation, summary="For a campaign")

@hookimpl
def register_strategies(register):
    register("bad", Strategy, summary="For a campaign")
"""
BACKBONE = """
from pathlib import Path
import torch
from torch import nn
from autotl import Head, Input, ModelCard, Phase, Training, hookimpl

{module}

class Family:
    def names(self):
        {names}

    def card(self, name):
        {card}
        if name != "net":
            raise KeyError(name)
        own = Input(size=32, resize=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)
        return ModelCard(input=own, weights=None, source="nothing", license="none")

    def build(self, name, weights):
        first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU())
        second = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.ReLU())
        network = nn.Sequential(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
        {build}
        return network

class Trains:
    first_guess = {{"backbone": "bad:net"}}

    def suggest(self, trial, context):
        names = context.backbone().names
        info = context.backbone()
        lrs = {{name: 0.01 for name in names if info.stage(name).parameters}}
        training = Training(epochs=1, batch_size=16, head_lr=0.1, stage_lr=lrs, batch_norm="train")
        phase = Phase(method="gradient-descent", frozen=None, training=training)
        return context.plan(cut=names[-1], head=Head(pooling="avg"), phases=[phase])

@hookimpl
def register_backbones(register):
    register("bad", Family, summary="For a campaign")

@hookimpl
def register_strategies(register):
    register("bad", Trains, summary="For a campaign")
"""
LAYER = """
class Layer(nn.ReLU):
    def forward(self, value):
        value = super().forward(value)
        {body}
        return value
"""
REAL = "if type(value) is torch.Tensor:"


@dataclass(frozen=True)
class Plugin:
    """A broken plugin, and what is searched with it."""

    code: str
    settings: dict = field(default_factory=dict)
    prints: bool = False
    """It does nothing wrong but print."""
    requires: str = "autotl"
    entry: str = ""
    """What follows the module's name in the entry point."""


def at_loading(body, before="", name="register_strategies(register)", **more):
    return Plugin(HOOK.format(before=before, name=name, body=body), {"strategies": ("linear-probe",)}, **more)


def strategy(body, attributes="", **more):
    return Plugin(STRATEGY.format(body=body, attributes=attributes), {"strategies": ("linear-probe", "ba*")}, **more)


def method(body, options='options = ("strength",)', **settings):
    code = METHOD.format(body=body, options=options)
    return Plugin(code, {"strategies": ("linear-probe", "ba*"), **settings})


def augmentation(suggest="return {}", build="return lambda images, draw: images", **more):
    settings = {"strategies": ("linear-probe", "ba*"), "augmentations": ("none", "ba*")}
    return Plugin(AUGMENTATION.format(suggest=suggest, build=build, train=TRAIN), settings, **more)


def backbone(names='return ["net"]', card="pass", build="pass", layer="", strategies=("linear-probe", "ba*"), **more):
    """`layer`: the body of a layer that replaces the second activation."""
    module = LAYER.format(body=layer) if layer else ""
    build = "second[1] = Layer()" if layer else build
    code = BACKBONE.format(module=module, names=names, card=card, build=build)
    return Plugin(code, {"strategies": strategies, "backbones": ("reference:edges", "bad:*")}, **more)


def registers(*words):
    return at_loading(f"register({', '.join(words)})")


FINE = "lambda: None"
HEAD = "return [FittedHead({weight}, {bias}, {{'strength': each}}) for each in options['strength']]"
PLUGINS = {
    # When it is loaded
    "import-raises": at_loading("pass", "raise ValueError('not today')"),
    "import-lacks": at_loading("pass", "import a_library_that_is_not_here"),
    "import-syntax": at_loading("pass", "def broken(:"),
    "import-exits": at_loading("pass", "raise SystemExit('no licence')"),
    "import-memory": at_loading("pass", "raise MemoryError"),
    "import-cancels": at_loading("pass", "import asyncio; raise asyncio.CancelledError"),
    "import-prints": at_loading("pass", f"print({LOUD!r})", prints=True),
    "entry-absent": at_loading("pass", entry=":absent"),
    "hook-unmarked": Plugin("def register_strategies(register): pass\n", {"strategies": ("linear-probe",)}),
    "hook-unknown": at_loading("pass", name="register_pets(register)"),
    "hook-arguments": at_loading("pass", name="register_strategies(register, mood)"),
    "hook-raises": at_loading("raise KeyError('x')"),
    "hook-exits": at_loading("raise SystemExit(3)"),
    "hook-prints": at_loading(f"print({LOUD!r})", prints=True),
    "needs-newer": at_loading("pass", requires="autotl>=99"),
    "name-comma": registers("'a,b'", FINE, "summary='x'"),
    "name-number": registers("5", FINE, "summary='x'"),
    "name-taken": registers("'linear-probe'", FINE, "summary='x'"),
    "name-glob": registers("'*'", FINE, "summary='x'"),
    "summary-none": registers("'bad'", FINE, "summary=None"),
    "summary-missing": registers("'bad'", FINE),
    "load-no-callable": registers("'bad'", "7", "summary='x'"),
    "load-none": Plugin(
        HOOK.format(before="", name="register_strategies(register)", body=f"register('bad', {FINE}, summary='x')"),
        {"strategies": ("linear-probe", "ba*")},
    ),
    "suggest-missing": Plugin(
        STRATEGY.format(attributes="", body="pass").replace("suggest", "sugest"),
        {"strategies": ("linear-probe", "ba*")},
    ),
    "suggest-signature": Plugin(
        STRATEGY.format(attributes="", body="pass").replace("trial, context", "trial"),
        {"strategies": ("linear-probe", "ba*")},
    ),
    "init-memory": strategy("pass", "def __init__(self): raise MemoryError"),
    "init-exits": strategy("pass", "def __init__(self): raise SystemExit"),
    # When a strategy suggests
    "suggest-raises": strategy("raise ZeroDivisionError"),
    "suggest-none": strategy("return None"),
    "suggest-dict": strategy("return {'plan': 1}"),
    "suggest-exits": strategy("raise SystemExit(0)"),
    "suggest-memory": strategy("raise MemoryError"),
    "suggest-prunes": strategy("import optuna; raise optuna.TrialPruned"),
    "suggest-recursion": strategy("return self.suggest(trial, context)"),
    "suggest-sleeps": strategy("import time; time.sleep(10_000)"),
    "suggest-loops": strategy("while True: pass"),
    "suggest-insists": strategy("""import time
        for _ in range(3):
            try:
                time.sleep(10_000)
            except BaseException:
                pass
        raise ValueError"""),
    "suggest-prints": strategy(f"print({LOUD!r}); {PROBE}return plan", prints=True),
    "trial-report": strategy("trial.report(1.0, 1)"),
    "trial-prune": strategy("trial.should_prune()"),
    "trial-attribute": strategy("trial.set_user_attr('images', 'others')"),
    "draws-frozen": strategy("trial.suggest_categorical('frozen', ['none', 'all'])"),
    "draws-strategy": strategy("trial.suggest_categorical('strategy', ['bad'])"),
    "draws-others": strategy("trial.suggest_float('fine-tune.lr_scheme', 0, 1)"),
    "draws-bare": strategy("trial.suggest_float('rate', 0, 1)"),
    "draws-anew": strategy(f"trial.suggest_categorical('bad.kind', list(range(2 + trial.number))); {PROBE}return plan"),
    "draws-backwards": strategy("trial.suggest_float('bad.rate', 1, 0)"),
    "plan-nan": strategy("Training(epochs=1, batch_size=16, head_lr=float('nan'))"),
    "plan-forged": strategy(f"{PROBE}return plan.model_copy(update={{'phases': 'none'}})"),
    "plan-cut": strategy(f"{PROBE}return plan.model_copy(update={{'cut': 'nowhere'}})"),
    "plan-method": strategy(f"{PROBE}return plan.model_copy(update={{'phases': (Phase(method='x', frozen=cut),)}})"),
    "plan-backbone": strategy(f"{PROBE}return plan.model_copy(update={{'backbone': 'nowhere:net'}})"),
    "plan-weights": strategy(f"{PROBE}return plan.model_copy(update={{'weights': 'sha256:0'}})"),
    "plan-lr": strategy("""names = context.backbone().names
        training = Training(epochs=1, batch_size=16, head_lr=0.1, stage_lr={"x": 1.0})
        phase = Phase(method="gradient-descent", frozen=None, training=training)
        return context.plan(cut=names[-1], head=Head(pooling="avg"), phases=[phase])"""),
    "guess-number": strategy(f"{PROBE}return plan", "first_guess = 5"),
    "guess-raises": strategy(f"{PROBE}return plan", "first_guess = property(lambda self: 1 / 0)"),
    "guess-range": strategy(f"{PROBE}return plan", "first_guess = {'cut': 7.0}"),
    "guess-unknown": strategy(f"{PROBE}return plan", "first_guess = {'bad.momentum': 0.9}"),
    "guess-augmentation": strategy(f"{PROBE}return plan", "first_guess = {'augmentation': 'flop'}"),
    "guess-object": strategy(f"{PROBE}return plan", "first_guess = {'cut': object()}"),
    # When a head is fitted
    "method-raises": method("raise IndexError"),
    "method-exits": method("raise SystemExit"),
    "method-memory": method("raise MemoryError"),
    "method-prunes": method("import optuna; raise optuna.TrialPruned"),
    "method-empty": method("return []"),
    "method-none": method("return None"),
    "method-nan": method(HEAD.format(weight="weight / 0", bias="bias")),
    "method-shape": method(HEAD.format(weight="weight.T", bias="bias")),
    "method-double": method(HEAD.format(weight="weight.double()", bias="bias")),
    "method-chosen": method(HEAD.format(weight="weight", bias="bias").replace("each}", "str(each)}")),
    "method-options": method(HEAD.format(weight="weight", bias="bias"), "pass"),
    "method-sleeps": method("import time; time.sleep(10_000)", budget=60),
    # When images are changed
    "augmentation-raises": augmentation("raise KeyError('x')"),
    "augmentation-none": augmentation("return None"),
    "augmentation-tensor": augmentation("return {'t': torch.zeros(1)}"),
    "augmentation-build": augmentation(build="return absent"),
    "augmentation-no-transform": augmentation(build="return None"),
    "augmentation-crashes": augmentation(build="return lambda images, draw: images.view(7)"),
    "augmentation-shrinks": augmentation(build="return lambda images, draw: images[..., :16]"),
    "augmentation-floats": augmentation(build="return lambda images, draw: images.float()"),
    "augmentation-list": augmentation(build="return lambda images, draw: images.tolist()"),
    "augmentation-memory": augmentation(build="return lambda images, draw: bytearray(1 << 60)"),
    "augmentation-prints": augmentation(build=f"return lambda images, draw: print({LOUD!r}) or images", prints=True),
    # When a network is built, split and used
    "names-raise": backbone(names="raise OSError('away')"),
    "names-number": backbone(names="return 5"),
    "names-numbers": backbone(names="return [1, 2]"),
    "card-raises": backbone(card="raise OverflowError"),
    "card-none": backbone(card="return None"),
    "build-raises": backbone(build="raise ImportError('libnet.so')"),
    "build-memory": backbone(build="raise MemoryError"),
    "build-exits": backbone(build="raise SystemExit"),
    "build-none": backbone(build="return None"),
    "build-flat": backbone(build="return nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))"),
    "build-undecayed": backbone(build="network.no_weight_decay = lambda: 1 / 0"),
    "forward-raises": backbone(layer=f"{REAL} raise RuntimeError('no kernel')"),
    "forward-nan": backbone(layer=f"{REAL} value = value / 0"),
    "forward-shape": backbone(layer=f"{REAL} value = value[:, :3]"),
    "forward-memory": backbone(layer=f"{REAL} raise MemoryError"),
    "forward-later": backbone(
        layer=f"""{REAL}
            self.seen = getattr(self, "seen", 0) + len(value)
            if self.seen > 40: raise RuntimeError("tired")"""
    ),
    "forward-trains-not": backbone(layer=f"{REAL[:-1]} and value.requires_grad: raise RuntimeError('no gradient')"),
    "backward-raises": backbone(
        layer="""if type(value) is torch.Tensor and value.requires_grad:
            value.register_hook(lambda gradient: 1 / 0)"""
    ),
    "forward-prints": backbone(layer=f"print({LOUD!r})", prints=True),
}


class Notes(Silent):
    """Collects what the user would read."""

    def __init__(self):
        self.texts = []

    def note(self, text):
        self.texts.append(text)

    def trial_ended(self, record, best, done, total):
        self.texts.append(record.reason)


def install(site, name, plugin):
    """Write what pip installs of a distribution `autotl-<name>` with one module."""
    module = f"autotl_{name.replace('-', '_')}"
    info = site / f"{module}-1.2.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_text(plugin.code)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: autotl-{name}\nVersion: 1.2\nRequires-Dist: {plugin.requires}\n"
    )
    (info / "entry_points.txt").write_text(f"[autotl]\n{name} = {module}{plugin.entry}\n")


def searched(place, data, plugin):
    """What the user would read of a search with the plugin, and how it ended."""
    patience.ANSWER = patience.GRACE = 3.0
    sys.path.insert(0, str(place / "site"))
    watcher = Notes()
    with terminal.watcher(quiet=True):  # as in `autotl search --json`
        return watcher.texts, _end(place, data, plugin, watcher)


def _end(place, data, plugin, watcher):
    """How a search ended: `result`, or the error."""
    settings = {"backbones": ("reference:edges",), **plugin.settings}
    began = time.monotonic() - (40 if "budget" in settings else 0)  # most of the budget is used
    try:
        made = Search(
            Settings(
                data=data,
                trials=6,
                device="cpu",
                home=place / "studies",
                cache_dir=place.parent / "cache",
                reruns=0,
                refit=False,
                compare=False,
                mlflow=False,
                **settings,
            ),
            Host.from_environment(),
            watcher,
            began,
        )
        made.run()
    except BaseException as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return "result"


def in_its_own_process(place, data, plugin):
    """The same, from a forked process whose streams are files; None if it does not end."""
    (place / "site").mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child == 0:
        for stream, file in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(place / file, os.O_WRONLY | os.O_CREAT), stream)
        try:
            (place / "answer.json").write_text(json.dumps(searched(place, data, plugin)))
            sys.stdout.flush()
        finally:
            os._exit(0)
    began = time.monotonic()
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() - began > HANG:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.05)
    answer = place / "answer.json"
    return json.loads(answer.read_text()) if answer.exists() else ([], "its process died")


def outcome(place, data, name, plugin):
    """One of `OUTCOMES`, with the text."""
    install(place / "site", name, plugin)
    answer = in_its_own_process(place, data, plugin)
    if answer is None:
        return "hang", ""
    texts, end = answer
    if end != "result":
        return "search ended", end
    if plugin.prints:
        heard = LOUD in (place / "stderr").read_text() and LOUD not in (place / "stdout").read_text()
        return ("named and survived", "on standard error") if heard else ("not named", "not on standard error alone")
    named = [text for text in texts if f"plugin '{name}'" in text]
    return ("named and survived", named[0]) if named else ("not named", "; ".join(filter(None, texts)))


def main(names):
    unknown = set(names) - set(PLUGINS)
    if unknown:
        sys.exit(f"Unknown: {', '.join(sorted(unknown))}. Known: {', '.join(PLUGINS)}")
    counts = Counter()
    with tempfile.TemporaryDirectory() as folder:
        data = write_stripes(Path(folder) / "stripes")
        sound = Plugin("", {"strategies": ("linear-probe",)})
        assert searched(Path(folder) / "sound", data, sound)[1] == "result"  # imports what all searches need
        for name in names or PLUGINS:
            began = time.monotonic()
            how, said = outcome(Path(folder) / name, data, name, PLUGINS[name])
            counts[how] += 1
            print(f"{how:<20}{name:<28}{time.monotonic() - began:5.1f} s  {said[:160]}", flush=True)
    print()
    print(f"{counts.total()} plugins: " + ", ".join(f"{counts[how]} {how}" for how in OUTCOMES))
    sys.exit(0 if counts["named and survived"] == counts.total() else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
