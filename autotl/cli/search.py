"""`autotl search`: searches the best transfer-learning setup for a data set."""

import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from autotl.cli import completion, options
from autotl.errors import StudyError, unknown
from autotl.report import output


def _study_file(ctx: click.Context, option: click.Parameter, file: Path | None) -> Path | None:
    """Take options from a TOML file; the command line overrides them."""
    if file is None:
        return None
    try:
        values = tomllib.loads(file.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{file} cannot be read: {error}") from None
    known = {str(parameter.name) for parameter in ctx.command.params} - {"config", "yes", "as_json"}
    lists = {str(parameter.name) for parameter in ctx.command.params if parameter.callback is options.split}
    values = {key.replace("-", "_"): value for key, value in values.items()}
    for key, value in values.items():
        if key not in known:
            raise StudyError(f"{file}: " + unknown("key", key, sorted(known)))
        kind = {"data": str, "home": str, "cache_dir": str, "weights": dict, "set": dict}.get(key)
        if kind and not isinstance(value, kind):
            raise StudyError(f"{file}: {key} must be {'a table' if kind is dict else 'a text'}, not {value!r}.")
        # Paths in a file are relative to its folder.
        if kind is str:
            values[key] = str(file.parent / value)
        elif key == "plugins":
            named = [value] if isinstance(value, str) else value
            if not isinstance(named, list) or not all(isinstance(path, str) for path in named):
                raise StudyError(f"{file}: plugins must be a list of texts, not {value!r}.")
            values[key] = [str(file.parent / path) for path in named]
        elif key == "set":
            from autotl.study.settings import by_name, said

            values[key] = [f"{name}={said(fixed)}" for name, fixed in by_name(value).items()]
        elif kind is dict:
            values[key] = [f"{name}={file.parent / path}" for name, path in value.items()]
        elif key in lists and isinstance(value, str):
            values[key] = [value]
    ctx.default_map = {**(ctx.default_map or {}), **values}
    return file


def _read_by(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback for an option whose text the function of this name in `autotl.study.settings` reads."""

    def read(ctx: click.Context, option: click.Parameter, value: Any) -> Any:
        from autotl.study import settings

        try:
            return getattr(settings, name)(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return read


@click.command()
@click.argument("data", type=options.Existing())
@click.option(
    "--config",
    type=options.Existing(dir_okay=False),
    is_eager=True,
    expose_value=False,
    callback=_study_file,
    help="A TOML file with data and these options as keys, except --config, --yes and --json; paths in it are relative "
    "to its folder.",
)
@options.path_column
@options.label_column
@click.option("--trials", type=click.IntRange(1), default=50, show_default=True, help="Total number of trials.")
@click.option(
    "--budget",
    metavar="TIME",
    callback=_read_by("seconds"),
    help="Time limit for everything, including the test: 90s, 30m, 1.5h, 1h30m. At least 60s. [default: no limit]",
)
@click.option(
    "--prune/--no-prune",
    default=True,
    show_default=True,
    help="Prune trials that are worse than half of the others at the same share of their epochs.",
)
@options.names("--backbones", help="Backbones to search over. [default: those of --pool]")
@options.pool
@options.names("--strategies", help="Strategies to search over. [default: all]")
@options.names("--augmentations", help="Augmentations to search over. [default: all but basic]")
@options.names("--optimizers", help="Optimizers to search over. [default: adamw,sgd]")
@options.names("--objectives", help="Losses to search over. [default: cross-entropy]")
@options.names(
    "--adapters",
    help="What is trained of each stage, to search over: all, norm, bias, lora … [default: all]",
)
@options.names("--methods", help="Gradient methods to search over. [default: gradient-descent]")
@options.names(
    "--classifiers",
    complete=completion.registered("methods"),
    help="Linear classifiers on frozen features to search over: logistic, svm, ridge … [default: logistic]",
)
@options.names(
    "--heads",
    metavar="KIND,…",
    complete=completion.of_plan("HeadKind"),
    help="Heads to search over, where they are trained by gradient descent: linear, mlp, conv, cosine. [default: "
    "linear]",
)
@options.names(
    "--poolings",
    metavar="KIND,…",
    complete=completion.of_plan("Pooling"),
    help="Poolings to search over, for heads that are trained by gradient descent: avg, max, token, gem, flatten. "
    "[default: avg,max,token]",
)
@options.names(
    "--techniques",
    complete=completion.of_plan("Technique"),
    help="Techniques whose strength is searched, too: mixup, cutmix, l2-sp, ema, distillation, "
    "balanced-sampling. [default: none]",
)
@click.option(
    "--max-params",
    metavar="N",
    callback=_read_by("amount"),
    help="The most parameters that a network may have, head included: 5M, 300k. [default: no limit]",
)
@click.option(
    "--max-flops",
    metavar="N",
    callback=_read_by("amount"),
    help="The most FLOPs for one image: 600M, 1.5G. Cuts, inputs and backbones beyond it are not searched. [default: "
    "no limit]",
)
@click.option(
    "--max-latency-ms",
    metavar="MS",
    type=click.FloatRange(0, min_open=True),
    help="The most milliseconds for one image, measured on the device of the search, without the head. [default: no "
    "limit]",
)
@click.option(
    "--minimize",
    type=click.Choice(["params", "flops", "latency"]),
    help="A cost to minimize, too: the search looks for a Pareto front, without pruning. [default: the metric alone]",
)
@options.fixed
@options.plugins
@options.metric("Metric to select by; autotl plugins metrics lists them.")
@options.near_copies
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of splits, sampler and training."
)
@click.option(
    "--reruns",
    type=click.IntRange(0),
    default=4,
    show_default=True,
    help="How often the best plans are rerun, with new seeds and other images in val, before one is picked.",
)
@click.option(
    "--pick",
    metavar="HOW",
    default="best",
    show_default=True,
    callback=_read_by("way_to_pick"),
    help="Which plan wins, by validation: best; simplest, the simplest that is at most one standard error worse; knee, "
    "the best compromise with the cost of --minimize, or else with FLOPs; within=0.5, the cheapest that is at most 0.5 "
    "points worse than the best.",
)
@click.option(
    "--compare/--no-compare",
    default=True,
    show_default=True,
    help="Train and test baselines for the winner: a linear probe, raw pixels, the best training from scratch.",
)
@click.option(
    "--refit/--no-refit",
    default=True,
    show_default=True,
    help="Refit the winner on all images except the test images.",
)
@click.option(
    "--views",
    type=click.Choice(["auto", "1", "2"]),
    default="1",
    show_default=True,
    help="2: the model averages its probabilities for an image and for the mirrored image, at twice the cost. auto: if "
    "that is significantly more accurate on val.",
)
@click.option(
    "--ensemble",
    metavar="K",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Average the probabilities of K different models, at the cost of all of them: the winner's, and others of the "
    "twelve best plans, chosen greedily by validation.",
)
@click.option(
    "--max-kills",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Count a trial as failed if its process was killed this many times in the same epoch.",
)
@options.device
@click.option(
    "--workers",
    metavar="N",
    default="1",
    show_default=True,
    help="Number of processes that work on the search. auto: one for each GPU, or on a CPU one for each core while "
    "there is memory. With more than one, a search cannot be repeated draw for draw.",
)
@click.option("--study", shell_complete=completion.studies, help="Name of the study. [default: the folder's name]")
@click.option(
    "--storage",
    metavar="URL",
    envvar="AUTOTL_STORAGE",
    help="Optuna's database. If it has a password, set $AUTOTL_STORAGE instead: everybody on this machine can read "
    "the command line. [default: $AUTOTL_STORAGE or SQLite in the study's folder]",
)
@options.weights
@click.option(
    "--from",
    "--from-study",
    "from_study",
    metavar="STUDY",
    shell_complete=completion.studies,
    help="Start from the winner of STUDY: its network up to the cut, with the weights of its bundle. It is the only "
    "backbone unless --backbones names others.",
)
@options.home
@options.cache_dir
@click.option(
    "--strict-plugins", is_flag=True, help="Stop if a plugin is broken or fails, instead of continuing without it."
)
@click.option(
    "--mlflow/--no-mlflow",
    default=True,
    show_default=True,
    help="Log every trial to MLflow, for autotl ui.",
)
@options.tracking_uri
@options.yes
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object and nothing else.")
def command(as_json: bool, **values: Any) -> None:
    """Find the best transfer-learning setup for the images in DATA.

    DATA is a folder with a sub-folder for each class, or with train/, val/ and test/ of such folders (val
    and test may be missing), or a manifest: a CSV or Parquet file with the columns path, label and,
    optionally, split and group.

    The same command resumes an interrupted search; a larger --trials adds trials to the study.

    \b
    autotl search data/flowers --trials 20
    autotl search data/flowers --backbones 'timm:resnet*' --metric macro-f1
    autotl search --config flowers.toml --seed 1
    """
    began = time.monotonic()

    from autotl.host import Host
    from autotl.report import terminal
    from autotl.report.page.write import write_at_the_end
    from autotl.study.search import Search
    from autotl.study.settings import Settings

    with terminal.watcher(quiet=as_json) as watcher:
        settings = Settings.of(values)
        search = Search(settings, Host.from_environment(settings.plugins), watcher, began)
        result = search.run()
        write_at_the_end(search.folder, watcher.note)
    if as_json:
        output.write(result.to_json())
    else:
        terminal.show_result(search.folder)
    search.end_logging()
