"""The bundle of an ensemble, and its exports: models with different backbones and inputs, averaged."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from autotl.api import Model
from autotl.backbones.catalogue import Catalogue
from autotl.cli.main import main
from autotl.engine.bench import Bench
from autotl.engine.fit import fit
from autotl.errors import StudyError, WeightsError
from autotl.export import bundle, contents, formats
from autotl.plan import NO_AUGMENTATION, DataRef, Head, TransferPlan
from autotl.testing.lab import linear_probe, write_stripes

NETWORKS = {"autotl:resnet10": "layer1.0", "tiny:net": "1.2", "tiny:deep": "2.1"}
COSTS = {"parameters": 9.0, "flops": 99.0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images, and with bundles of three models: one for 64 px and two for 32 px."""
    from autotl.host import Host
    from autotl.testing.lab import TinyPlugin

    folder = tmp_path_factory.mktemp("place")
    host = Host()
    host.add(TinyPlugin(), "tiny-plugin")
    catalogue = Catalogue(host, folder / "cache")
    images = write_stripes(folder / "stripes")
    bench = Bench.open(images, [catalogue.card(name).input for name in NETWORKS], catalogue, "cpu", seed=0)
    for number, (name, cut) in enumerate(NETWORKS.items(), 1):
        network = catalogue.network(name, 0)
        plan = TransferPlan(
            backbone=name,
            weights=network.weights,
            input=network.input,
            cut=cut,
            head=Head(pooling="avg"),
            augmentation=NO_AUGMENTATION,
            data=DataRef(fingerprint=bench.dataset.fingerprint, split_seed=0),
            seed=0,
            requires=catalogue.requires(name),
            phases=(linear_probe(cut),),
        )
        fitted = fit(plan, bench)
        bundle.save(folder / str(number), fitted, bench.dataset.classes, {"validation": fitted.metrics})
    return folder


@pytest.fixture
def catalogue(host, place):
    return Catalogue(host, place / "cache")


@pytest.fixture
def joined(place, tmp_path):
    """`joined(1, 2)`: the bundle of the ensemble of these models."""

    def join(*numbers):
        bundle.join(tmp_path / "joined", [place / str(number) for number in numbers], {"validation": COSTS})
        return tmp_path / "joined"

    return join


@pytest.fixture
def files(place):
    return sorted((place / "stripes").glob("*/*.png"))[::6]


@pytest.mark.parametrize(("numbers", "sizes"), [((1, 2, 3), [64, 32]), ((2, 1), [32, 64]), ((3, 2), [32])])
def test_an_ensemble_gives_the_mean_of_its_models_in_every_format(
    joined, place, catalogue, files, tmp_path, numbers, sizes
):
    folder = joined(*numbers)
    loaded = bundle.load(folder, catalogue)
    assert [input.size for input in loaded.graph.inputs] == sizes
    assert [plan.backbone for plan in loaded.plan.members] == [list(NETWORKS)[number - 1] for number in numbers]
    alone = [np.stack(list(bundle.load(place / str(number), catalogue).predict(files))) for number in numbers]
    model = Model(folder, loaded)
    found = model.predict_proba(files)
    np.testing.assert_allclose(found, np.mean(alone, axis=0), atol=1e-6)
    assert min(np.abs(found - each).max() for each in alone) > 0.01
    for kind in formats.FORMATS:
        made = model.export(kind, tmp_path / kind, files)
        assert made.difference <= 1e-5 and made.flops == COSTS["flops"]
        words = [sys.executable, "predict.py", *map(str, files)]
        done = subprocess.run(words, cwd=made.folder, capture_output=True, text=True, check=True)
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        assert [row[1] for row in rows] == model.predict(files)
        np.testing.assert_allclose([float(row[2]) for row in rows], found.max(1), atol=1e-5)
    card = (tmp_path / "onnx" / "README.md").read_text()
    assert f"the mean of the probabilities of {len(numbers)} models" in card
    shapes = [f"uint8 [N, 3, {size}, {size}]" for size in sizes]
    wanted = f"the same images as `images` {shapes[0]} and `images2` {shapes[-1]}, prepared" if sizes[1:] else shapes[0]
    assert wanted in card


def test_a_copy_of_an_ensemble_is_the_same_model_with_all_terms_once(joined, catalogue, files, tmp_path):
    folder = joined(1, 2, 3)
    model = Model(folder, bundle.load(folder, catalogue))
    copy = model.export("bundle", tmp_path / "copy", files).folder
    again = bundle.load(copy, catalogue)
    np.testing.assert_array_equal(Model(copy, again).predict_proba(files), model.predict_proba(files))
    assert again.license == (folder / "LICENSE").read_text()
    for once in ("Terms of the weights in this folder", "may have their own terms.", "weights of autotl:resnet10"):
        assert again.license.count(once) == 1


def test_images_in_memory_and_those_that_cannot_be_read_get_their_answers(joined, catalogue, files, tmp_path):
    from PIL import Image

    loaded = bundle.load(joined(1, 2), catalogue)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    first, why, again = loaded.predict([files[0], broken, Image.open(files[0])])
    np.testing.assert_array_equal(first, again)
    assert isinstance(why, str)


def rewritten(folder, **changes):
    """Change files of a bundle, and their hashes with them."""
    files = {name: (folder / name).read_bytes() for name in contents.CARRIED} | changes
    contents.write_files(folder, files)


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ({"member3.head.weight": torch.zeros(3, 12)}, "has tensors of no model in plan.json"),
        ({"member2.head.more": torch.zeros(3, 12)}, "head.more is missing or extra"),
    ],
)
def test_tensors_of_no_model_are_refused(joined, catalogue, extra, problem):
    folder = joined(1, 2)
    save_file({**load_file(folder / contents.WEIGHTS), **extra}, folder / contents.WEIGHTS)
    rewritten(folder)
    with pytest.raises(StudyError, match=f"is damaged: .*{problem}"):
        bundle.load(folder, catalogue)


def test_preprocessing_is_that_of_the_plans(joined, catalogue):
    folder = joined(1, 2)
    first, second = json.loads((folder / "preprocessing.json").read_text())
    for wrong in ([second, first], [first], first):
        rewritten(folder, **{"preprocessing.json": json.dumps(wrong).encode()})
        with pytest.raises(StudyError, match="preprocessing.json differs from its plan"):
            bundle.load(folder, catalogue)


def test_the_plans_of_an_ensemble_are_not_trained_as_one(joined, place):
    done = CliRunner().invoke(main, ["train", str(joined(1, 2) / "plan.json"), str(place / "stripes")])
    assert done.exit_code == 2
    assert "has the plans of the 2 models of an ensemble, and one is trained at a time." in done.output


def test_an_ensemble_gives_no_weights_to_a_backbone(joined):
    with pytest.raises(WeightsError, match="is an ensemble of 2 models.* Use the bundle of one model") as raised:
        bundle.given({"tiny:net": joined(1, 2)})
    assert os.linesep not in str(raised.value)
