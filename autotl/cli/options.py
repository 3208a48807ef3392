"""Options shared by several commands."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from autotl.cli import completion
from autotl.errors import missing


class Existing(click.Path):
    """The type of a path that must exist; if it does not, the error names a similar one."""

    def __init__(self, *, dir_okay: bool = True, file_okay: bool = True) -> None:
        super().__init__(exists=True, dir_okay=dir_okay, file_okay=file_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.path.exists(value):
            self.fail(missing(Path(value)), param, ctx)
        return super().convert(value, param, ctx)


home = click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    help="Workspace with all studies. [default: $AUTOTL_HOME or ./autotl-studies]",
)
cache_dir = click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for decoded images and features. [default: the user's cache folder]",
)
path_column = click.option(
    "--path-column",
    metavar="NAME",
    help="Column of the manifest with the image paths. [default: path, or a usual name such as filename]",
)
label_column = click.option(
    "--label-column",
    metavar="NAME",
    help="Column of the manifest with the classes. [default: label, or a usual name such as class]",
)
device = click.option("--device", default="auto", show_default=True, help="Device: auto, cpu, cuda, cuda:1, mps …")

plugins = click.option(
    "--plugin",
    "plugins",
    multiple=True,
    type=Existing(dir_okay=False),
    metavar="FILE.py",
    help="A plugin in a single file, besides the installed ones. Can be repeated.",
)
pool = click.option(
    "--pool",
    type=click.Choice(["auto", "shipped", "small", "large"]),
    default="auto",
    show_default=True,
    help="Backbones if --backbones is not given. shipped: those that come with autotl; small: also three small "
    "ImageNet networks (76 MB to download, 57 MB with autotl[lite]); large: also three larger ones (305 MB); auto: "
    "large on a GPU, otherwise small.",
)
yes = click.option("--yes", is_flag=True, help="Download large weights without asking.")
near_copies = click.option(
    "--near-copies",
    type=click.Choice(["together", "apart"]),
    default="together",
    show_default=True,
    help="Whether near-copies, such as one photo at two JPEG qualities, are kept in one split.",
)

tracking_uri = click.option(
    "--tracking-uri",
    metavar="URI",
    help="MLflow server or store. If it has a password, set $MLFLOW_TRACKING_URI instead. "
    "[default: $MLFLOW_TRACKING_URI or SQLite in the workspace]",
)


def _weights(ctx: click.Context, option: click.Parameter, values: tuple[str, ...] | dict[str, str]) -> dict[str, Path]:
    """`NAME=FILE` or `NAME=BUNDLE`, repeated, or a table in the file of --config."""
    if isinstance(values, dict):
        return {name: Path(file) for name, file in values.items()}
    named = {}
    for value in values:
        name, equals, file = value.partition("=")
        if not equals or not file:
            raise click.BadParameter(
                f"'{value}' is not of the form NAME=FILE, such as torchvision:resnet18=resnet18.pth"
            )
        named[name] = Path(file)
    return named


weights = click.option(
    "--weights",
    multiple=True,
    metavar="NAME=FILE",
    callback=_weights,
    help="Weights for a backbone: safetensors, a PyTorch checkpoint, or a bundle of autotl. Can be repeated.",
)


def _set(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """`NAME=VALUE`, repeated."""
    from autotl.study.settings import parsed

    fixed = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"'{value}' is not of the form NAME=VALUE, such as augmentation=none")
        fixed[name] = parsed(text)
    return fixed


fixed = click.option(
    "--set",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_set,
    help="Fix a parameter instead of searching it: a strategy's own, such as recipe.schedule=constant, or a shared "
    "one, such as augmentation=none. Can be repeated.",
)


def split(ctx: click.Context, option: click.Parameter, values: tuple[str, ...] | str) -> tuple[str, ...]:
    """Several values, repeated or separated by commas."""
    values = (values,) if isinstance(values, str) else values
    return tuple(part for value in values for part in value.split(",") if part)


def names(
    *flags: str, help: str, metavar: str = "NAME,…", complete: completion.Complete | None = None
) -> Callable[[Any], Any]:
    """An option for several names, repeated or separated by commas: of registered plugins, or what `complete` gives."""
    complete = complete or completion.registered(flags[0].removeprefix("--"))
    return click.option(*flags, multiple=True, metavar=metavar, callback=split, shell_complete=complete, help=help)


def metric(help: str) -> Callable[[Any], Any]:
    """An option for the name of a registered metric."""
    complete = completion.registered("metrics")
    return click.option(
        "--metric", metavar="NAME", default="accuracy", show_default=True, shell_complete=complete, help=help
    )
