"""`autotl worker`: more hands for a search."""

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
    help="Optuna's database of the search; better $AUTOTL_STORAGE where it has a password. "
    "[default: $AUTOTL_STORAGE or that of the study's folder]",
)
@click.option(
    "--data", type=click.Path(exists=True, path_type=Path), help="The images. [default: where the search has them]"
)
@options.path_column
@options.label_column
@options.device
@options.weights
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
    home: Path | None,
    cache_dir: Path | None,
) -> None:
    """Carry out trials of STUDY beside the search that began it, in this process.

    As many workers may join as there are cores (OMP_NUM_THREADS=1 for each) or GPUs (--device cuda:1; auto is the
    first one), also on other machines that see the images; for those the search must have a database that they
    reach. A worker that dies loses nothing: the search runs its trial again. It ends when no trial is left to begin.

    \b
    OMP_NUM_THREADS=1 autotl worker digits
    export AUTOTL_STORAGE=postgresql+psycopg://user:password@host/optuna
    autotl worker flowers --data /mnt/flowers
    """
    from autotl.data.listing import Columns
    from autotl.host import Host
    from autotl.report import terminal
    from autotl.study.storage import SharedStudy
    from autotl.study.worker import Worker
    from autotl.tracking import folder

    if storage is None:
        found = folder.find_study(folder.home(home), study)
        assert found.definition is not None
        storage, study = found.storage, found.definition.optuna
    shared = SharedStudy.join(storage, study)
    with terminal.watcher(quiet=False) as watcher:
        worker = Worker(
            shared,
            Host.from_environment(),
            watcher,
            data=data,
            columns=Columns(path_column, label_column),
            device=device,
            cache_dir=folder.cache_dir(cache_dir),
            weights=weights,
        )
        done = worker.run()
    output.echo(f"{done} trials carried out; there is none to begin now.")
