"""`autotl evaluate`: a model on labelled images that came later."""

from pathlib import Path

import click

from autotl.cli import completion, options
from autotl.report import output


@click.command()
@click.argument("model", metavar="STUDY|BUNDLE", shell_complete=completion.models)
@click.argument("data", type=options.Existing())
@options.path_column
@options.label_column
@click.option("--json", "as_json", is_flag=True, help="Print the evaluation as one JSON object, with complete lists.")
@options.device
@options.plugins
@options.home
@options.cache_dir
def command(
    model: str,
    data: Path,
    path_column: str | None,
    label_column: str | None,
    as_json: bool,
    device: str,
    plugins: tuple[Path, ...],
    home: Path | None,
    cache_dir: Path | None,
) -> None:
    """Measure the model of a study or a bundle on the labelled images in DATA, which came later.

    DATA is a folder with a sub-folder for each class, or a manifest, as for a search. It shows metrics with
    95 % confidence intervals, the recall of each class, the classes that are confused, and the most confident
    mistakes. Copies of images that the study has used are named, because they make the figures optimistic.
    The study is not changed.

    \b
    autotl evaluate digits later-photos
    autotl evaluate digits later-photos --json
    """
    from autotl import api
    from autotl.report import evaluation

    loaded = api.load(model, device=device, home=home, cache_dir=cache_dir, plugins=plugins)
    found = loaded.evaluate(
        data, path_column=path_column, label_column=label_column, cache_dir=cache_dir, plugins=plugins
    )
    if as_json:
        output.write(found.to_json())
        return
    for line in evaluation.lines(found):
        output.echo(line)
