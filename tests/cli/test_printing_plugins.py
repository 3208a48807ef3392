"""Output that a plugin prints is never mixed with the results."""

import csv
import io
import json

from click.testing import CliRunner
from torch import nn

from autotl import Head, Phase, Training, hookimpl
from autotl.cli.main import main
from autotl.host import Host
from autotl.testing.lab import TinyFamily, TinyNetwork


class Says(nn.ReLU):
    def forward(self, value):
        print("forward")
        return super().forward(value)


class Family(TinyFamily):
    def names(self):
        print("names")
        return ["net"]

    def build(self, name, weights):
        print("build")
        network = TinyNetwork()
        network[2][1] = Says()
        return network


class Strategy:
    def suggest(self, trial, context):
        print("suggest")
        (first, *others) = context.backbone().names
        trained = dict.fromkeys(others, 0.01)
        training = Training(epochs=1, batch_size=16, head_lr=0.1, stage_lr=trained)
        phase = Phase(method="gradient-descent", frozen=first, training=training)
        return context.plan(cut=others[-1], head=Head(pooling="avg"), phases=[phase])


class Loud:
    @hookimpl
    def register_backbones(self, register):
        print("register")
        register("loud", Family, summary="For a test")

    @hookimpl
    def register_strategies(self, register):
        register("loud", Strategy, summary="For a test")


def test_json_and_csv_do_not_contain_what_a_plugin_prints(stripes, monkeypatch):
    really = Host.from_environment

    def host(plugins=()):
        made = really()
        made.add(Loud(), "loud-plugin")
        return made

    monkeypatch.setattr(Host, "from_environment", host)
    quick = ("--reruns", "0", "--no-compare", "--no-refit", "--device", "cpu", "--no-mlflow", "--trials", "1")
    search = ["search", str(stripes), "--backbones", "loud:net", "--strategies", "loud", *quick]
    done = CliRunner().invoke(main, search)
    assert "loud:net is trained in " in done.stdout  # a note of autotl while the plugin suggests
    done = CliRunner().invoke(main, [*search, "--study", "again", "--json"])
    assert json.loads(done.stdout)["trials"]["complete"] == 1
    assert {"register", "suggest", "forward"} <= {*done.stderr.splitlines()}
    done = CliRunner().invoke(main, ["predict", "stripes", str(stripes / "across")])
    assert len(list(csv.DictReader(io.StringIO(done.stdout)))) == 30
    assert {"build", "forward"} <= {*done.stderr.splitlines()}
