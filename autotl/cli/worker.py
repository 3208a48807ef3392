"""`autotl worker`: runs trials of a search in another process."""

from pathlib import Path

import click

from autotl.cli import completion, options
from autotl.report import output


@click.command()
@click.argument("study", shell_complete=completion.studies)
@click.option(
    "--storage",
    metavar="URL",
    envvar="AUTOTL_STORAGE",
    help="Optuna's database of the search. If it has a password, set $AUTOTL_STORAGE instead. "
    "[default: $AUTOTL_STORAGE or that of the study's folder]",
)
@click.option("--data", type=options.Existing(), help="The images. [default: the path that the search uses]")
@options.path_column
@options.label_column
@options.device
@options.weights
@options.plugins
@options.home
@options.cache_dir
def command(
    study: str,
    storage: str | None,
    data: Path | None,
    path_column: str | None,
    label_column: str | None,
    device: str,
    weights: dict[str, Path],
    plugins: tuple[Path, ...],
    home: Path | None,
    cache_dir: Path | None,
) -> None:
    """Run trials of STUDY in this process, in parallel with the search that started STUDY.

    Start at most one worker per core (OMP_NUM_THREADS=1 for each) or per GPU (--device cuda:1; auto is the first
    one). Workers on other machines need the images and a database (--storage) that all machines reach. If a worker
    dies, the search runs its trial again. A worker ends when no trial is left to start.

    \b
    OMP_NUM_THREADS=1 autotl worker digits
    export AUTOTL_STORAGE=postgresql+psycopg://user:password@host/optuna
    autotl worker flowers --data /mnt/flowers
    """
    from autotl.data.listing import Columns
    from autotl.host import Host
    from autotl.report import terminal
    from autotl.study.joining import Joining
    from autotl.study.storage import SharedStudy
    from autotl.tracking import folder

    if storage is None:
        found = folder.find_study(folder.home(home), study)
        assert found.definition is not None
        storage, study = found.storage, found.definition.optuna
    shared = SharedStudy.join(storage, study)
    with terminal.watcher(quiet=False) as watcher:
        joining = Joining(
            shared,
            Host.from_environment(plugins),
            watcher,
            data=data,
            columns=Columns(path_column, label_column),
            device=device,
            cache_dir=folder.cache_dir(cache_dir),
            weights=weights,
        )
        done = joining.run()
    output.echo(f"{done} trials done; no trial is left to start.")
