"""`autotl plugins`: lists what the installed plugins offer, and writes a new one."""

import keyword
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import click
from packaging.utils import InvalidName, canonicalize_name

import autotl
from autotl.cli import completion, options
from autotl.errors import PluginError
from autotl.files import write
from autotl.host import KINDS, Host
from autotl.registry import Registry
from autotl.report import output

TEMPLATES = Path(__file__).parent / "templates"
"""A folder for each of `KINDS_OF_NEW`; that of a strategy is a whole distribution, plugins/autotl-late-probe."""


@dataclass(frozen=True)
class Template:
    """A plugin that a new one of its kind starts as."""

    name: str
    """Its name, which the new one's replaces."""
    registers: tuple[str, ...]
    """The kinds of things that it registers under its name."""
    options: str
    """With which options of `autotl search` it is tried."""


KINDS_OF_NEW = {
    "strategy": Template("late-probe", ("strategies",), "--strategies {}"),
    "backbone": Template("plain-nets", ("backbones",), "--backbones {}:w16.photos@random"),
    "weights": Template("our-mirror", ("weights",), "--backbones timm:resnet18.a1_in1k"),
    "augmentation": Template("grey-square", ("augmentations",), "--augmentations none,{}"),
    "method": Template("nearest-mean", ("methods", "strategies"), "--strategies {}"),
    "objective": Template("logit-adjusted", ("objectives",), "--objectives cross-entropy,{}"),
    "optimizer": Template("rms-prop", ("optimizers",), "--optimizers adamw,{}"),
    "adapter": Template("channel-scale", ("adapters",), "--adapters all,{}"),
    "metric": Template("brier-score", ("metrics",), "--metric {}"),
}
SHARED = ("pyproject.toml", "LICENSE", ".github/workflows/test.yml")
"""The files that all templates share: those of the strategy."""
OWN = ("README.md", "autotl_{}.py", "tests/test_{}.py")
"""The files that each template has, with its name as that of a module."""
HELP = {"backbones": "List families of backbones, or backbones by GLOB. A full name lists its stages and their costs."}


@click.group(invoke_without_command=True)
@options.plugins
@click.pass_context
def command(ctx: click.Context, plugins: tuple[Path, ...]) -> None:
    """List what plugins offer, with the distribution of each; start a plugin of your own.

    \b
    autotl plugins
    autotl plugins backbones 'timm:resnet*'
    autotl plugins backbones autotl:resnet10
    autotl plugins --plugin my_idea.py
    autotl plugins new my-idea
    """
    ctx.obj = plugins
    if ctx.invoked_subcommand is None:
        _list(_host(plugins), KINDS)


def _listing(kind: str) -> click.Command:
    @click.command(kind, help=HELP.get(kind, f"List {kind}: those that match GLOB, or all."))
    @click.argument("pattern", metavar="[GLOB]", required=False, shell_complete=completion.registered(kind))
    @options.plugins
    @click.pass_obj
    def listing(before: tuple[Path, ...], pattern: str | None, plugins: tuple[Path, ...]) -> None:
        host = _host((*before, *plugins))
        if kind == "backbones" and pattern:
            _backbones(host, pattern)
        else:
            _list(host, [kind], pattern)

    return listing


for _kind in KINDS:
    command.add_command(_listing(_kind))


@command.command(short_help="Start a plugin of your own.")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(list(KINDS_OF_NEW)),
    default="strategy",
    show_default=True,
    help="What the plugin adds to autotl.",
)
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path), help="Folder to write. [default: autotl-NAME]"
)
def new(name: str, kind: str, folder: Path | None) -> None:
    """Write a new plugin: a distribution autotl-NAME that works, with its test and a licence.

    \b
    autotl plugins new my-idea
    autotl plugins new my-noise --kind augmentation
    """
    name = _plain(name)
    folder = folder or Path(f"autotl-{name}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PluginError(f"{folder} already exists; choose a new folder: --folder DIR")
    host, template = Host.from_environment(), KINDS_OF_NEW[kind]
    for registered in template.registers:
        registry = host.registries[registered]
        if name in registry:
            raise PluginError(
                f"{registry[name].owner} already registers the {registry.kind} '{name}'. Choose another name."
            )
    if taken := next((owner for owner in host.owners if owner.plugin == name), None):
        raise PluginError(f"There is already a {taken}. Choose another name.")
    try:
        for file, text in _files(kind, name):
            write(folder / file, text)
            output.echo(f"Written: {folder / file}")
    except OSError as error:
        raise PluginError(
            f"{folder} cannot be written: {error.strerror}. Choose another folder: --folder DIR"
        ) from None
    output.echo("\nNext:")
    here = os.path.join(".", folder)  # without the dot pip would look for a distribution of that name
    for line in (
        f"pip install -e {quote(f'{here}[dev]')}",
        f"pytest {quote(str(folder))}",
        f"autotl search DATA {template.options.format(name)} --study {name}",
    ):
        output.echo(f"  {line}")


def _files(kind: str, name: str) -> Iterator[tuple[str, str]]:
    """Each file of a new plugin, and its text."""
    first, old = KINDS_OF_NEW["strategy"].name, KINDS_OF_NEW[kind].name
    for file in SHARED:
        text = (TEMPLATES / "strategy" / file).read_text()
        yield file, _renamed(text.replace(f"The strategy {first}", f"The {kind} {first}"), first, name)
    for pattern in OWN:
        text = (TEMPLATES / kind / pattern.format(_module(old))).read_text()
        yield pattern.format(_module(name)), _renamed(text, old, name)


def _renamed(text: str, old: str, new: str) -> str:
    for form in (str, _module, _class):
        text = text.replace(form(old), form(new))
    return text


def _plain(name: str) -> str:
    """The name in lower case with hyphens, as in `my-idea`, without a leading `autotl-`.

    Raises: PluginError for a name that a distribution or a class cannot have.
    """
    try:
        plain = canonicalize_name(name, validate=True).removeprefix("autotl-")
    except InvalidName:
        plain = ""
    if not _class(plain).isidentifier() or keyword.iskeyword(_class(plain)):
        raise PluginError(
            f"'{name}' cannot name a plugin: use letters, digits and '-', a letter first, such as my-idea."
        )
    if _class(plain) in autotl.__all__:
        raise PluginError(f"'{name}' cannot name a plugin: its class would hide autotl's {_class(plain)}.")
    return plain


def _module(name: str) -> str:
    return name.replace("-", "_")


def _class(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("-"))


def _host(plugins: Sequence[Path]) -> Host:
    host = Host.from_environment(plugins)
    for problem in host.problems:
        _warn(problem)
    return host


def _warn(problem: object) -> None:
    output.echo(f"Warning: {problem}", err=True)


def _list(host: Host, kinds: Sequence[str], pattern: str | None = None) -> None:
    for kind in kinds:
        output.echo(f"{kind}:")
        _entries(host.registries[kind], pattern, colon=":" if kind == "backbones" else "")
    if "backbones" in kinds:
        output.echo("\nBackbones of a family: autotl plugins backbones 'timm:resnet*'")
        output.echo("One backbone, with the cost of its stages: autotl plugins backbones autotl:resnet10")


def _entries(registry: Registry, pattern: str | None, colon: str) -> None:
    entries = registry.match(pattern) if pattern else list(registry)
    output.echo_list(
        (f"  {entry.name}{colon}", f"{entry.summary}  ({entry.owner.distribution} {entry.owner.version})")
        for entry in entries
    )


def _backbones(host: Host, pattern: str) -> None:
    from autotl.backbones.catalogue import Catalogue
    from autotl.tracking.folder import cache_dir

    catalogue = Catalogue(host, cache_dir(None), skip=_warn)
    names = catalogue.expand([pattern if ":" in pattern else f"{pattern}:*"])
    if names == [pattern]:
        from autotl.report import backbones, tables

        console = tables.console()
        console.print(*backbones.card(catalogue, pattern, console.width), sep="\n")
        return
    rows = []
    for name in names:
        try:
            card = catalogue.card(name)
        except PluginError as error:
            _warn(error)
            continue
        size = f"{card.input.size} px"
        rows.append((name, f"{size:<8}{'; '.join(part for part in (card.source, card.note) if part)}"))
    output.echo_list(rows)
