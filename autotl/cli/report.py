"""`autotl report`: a study as one HTML page."""

from pathlib import Path

import click

from autotl.cli import completion, options
from autotl.report import output


@click.command()
@click.argument("study", shell_complete=completion.studies)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The file to write. [default: report.html in the study's folder]",
)
@click.option(
    "--show-test",
    is_flag=True,
    help="Show the model's mistakes on the test images, too. This use of their labels is recorded.",
)
@options.device
@options.plugins
@options.home
@options.cache_dir
def command(
    study: str,
    out: Path | None,
    show_test: bool,
    device: str,
    plugins: tuple[Path, ...],
    home: Path | None,
    cache_dir: Path | None,
) -> None:
    """Write what is known of STUDY as one HTML page, to read and to share.

    It shows how good the model is, compared with what, why this model won, and which classes it confuses.
    The page needs no internet access and runs no script. It contains small copies of some validation
    images. A search writes it, too.

    \b
    autotl report digits
    autotl report digits --out digits.html
    """
    from autotl.report.page.study import read
    from autotl.report.page.write import write_page
    from autotl.tracking import folder

    found, test = folder.find_study(folder.home(home), study), None
    if show_test:
        from autotl import api
        from autotl.report.page.opened import on_test

        records = read(found)
        loaded = api.load(found.path, device=device, cache_dir=cache_dir, plugins=plugins)
        test = on_test(records, loaded.bundle)
    output.echo(f"Report: {write_page(found, out, test)}")
