"""`autotl train`: trains one plan on a folder of images, without a search."""

import json
from functools import partial
from pathlib import Path

import click

from autotl.cli import options
from autotl.errors import PlanError
from autotl.report import output


@click.command()
@click.argument("plan", type=options.Existing(dir_okay=False))
@click.argument("data", type=options.Existing())
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the model, as a bundle.")
@options.path_column
@options.label_column
@options.metric("Metric to measure besides accuracy; autotl plugins metrics lists them.")
@options.device
@options.weights
@options.plugins
@options.cache_dir
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as one JSON object and nothing else.")
def command(
    plan: Path,
    data: Path,
    out: Path | None,
    path_column: str | None,
    label_column: str | None,
    metric: str,
    device: str,
    weights: dict[str, Path],
    plugins: tuple[Path, ...],
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """Train the plan in the file PLAN on the images in DATA.

    With the data that the plan was made for, on the same device and versions, this reproduces the numbers
    of the trial. `autotl show STUDY --plan TRIAL` prints the plan of a trial. The plan in a bundle may
    train on all images except the test images; it then reports no validation metrics.

    \b
    autotl show digits --plan 3 > plan.json
    autotl train plan.json data/digits --out model
    """
    from autotl.backbones.catalogue import Catalogue
    from autotl.data.listing import Columns
    from autotl.engine import device as devices
    from autotl.engine.bench import Bench
    from autotl.engine.fit import fit
    from autotl.export import bundle
    from autotl.host import Host
    from autotl.plan import Ensemble, made_by
    from autotl.report import terminal
    from autotl.tracking import folder

    if out:
        bundle.check_target(out)
    setup = made_by(plan.read_bytes(), name=str(plan))
    if isinstance(setup, Ensemble):
        raise PlanError(
            f"{plan} has the plans of the {len(setup.members)} models of an ensemble, and one is trained at a time. "
            "Give the plan.json of one of them, in a folder in members/ of the study."
        )
    with terminal.watcher(quiet=as_json) as watcher:
        given = bundle.given(weights)
        catalogue = Catalogue(
            Host.from_environment(plugins),
            folder.cache_dir(cache_dir),
            given,
            watcher.note,
            lambda problem: watcher.note(f"Warning: {problem}"),
        )
        bench = Bench.open(
            data,
            [setup.input],
            catalogue,
            devices.resolve(device),
            seed=setup.data.split_seed,
            columns=Columns(path_column, label_column),
            near_copies=setup.data.near_copies,
            metric=metric,
            progress=partial(watcher.progress, "reading images"),
            note=watcher.note,
        )
        dataset = bench.dataset
        watcher.dataset(dataset)
        if dataset.fingerprint != setup.data.fingerprint:
            watcher.note("The plan was made for other images or another split, so its numbers will differ.")
        fitted = fit(setup, bench, terminal.Epochs(watcher))
    if out:
        bundle.save(out, fitted, dataset.classes, {"validation": fitted.metrics}, fitted.calibration)
    if as_json:
        output.write(json.dumps({"metrics": fitted.metrics, "bundle": str(out) if out else None}) + "\n")
        return
    width = max(map(len, fitted.metrics)) + 2
    words = fitted.plan.words_in(fitted.metrics)
    for name, value in fitted.metrics.items():
        number = f"{value:{',.0f' if value % 1 == 0 else '.6g'}}"
        output.echo(f"{name:<{width}}{words.get(name, number)}")
    if out:
        output.echo(f"Bundle: {out}")
