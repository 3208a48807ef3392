"""`autotl advise`: what to try first on a data set, and why."""

from pathlib import Path

import click

from autotl.cli import options
from autotl.report import output


@click.command()
@click.argument("data", type=options.Existing())
@options.path_column
@options.label_column
@options.near_copies
@options.names("--backbones", help="Backbones to compare. [default: those of --pool]")
@options.pool
@options.weights
@options.plugins
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the splits.")
@options.device
@options.cache_dir
@options.yes
@click.option("--json", "as_json", is_flag=True, help="Print the advice as one JSON object and nothing else.")
def command(data: Path, as_json: bool, **given: object) -> None:
    """Say which way of transfer learning suits the images in DATA, and why, within about a minute.

    It counts the images of each class, and measures how similar they are to those that a backbone was
    trained on: how well its features separate the classes at each depth, compared with the same network at
    random and with raw pixels. Nothing is trained, and the test images are not used.

    \b
    autotl advise data/flowers
    autotl advise data/flowers --backbones timm:resnet18.a1_in1k
    """
    from autotl.host import Host
    from autotl.report import advice as words
    from autotl.report import terminal
    from autotl.study.advising import Advising
    from autotl.study.settings import Settings

    settings = Settings.of({"data": data, **given})
    host = Host.from_environment(settings.plugins)
    with terminal.watcher(quiet=as_json) as watcher:
        found = Advising(settings, host, watcher).run()
    if as_json:
        output.write(found.to_json())
        return
    output.echo()
    output.echo_list(words.lines(found, {entry.name: entry.summary for entry in host.strategies}, str(data)))
