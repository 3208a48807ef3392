"""`autotl show`: the results of a study on disk."""

from pathlib import Path

import click

from autotl.cli import completion, options
from autotl.files import write
from autotl.report import output


@click.command()
@click.argument("study", shell_complete=completion.studies)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("--plan", type=click.IntRange(0), metavar="TRIAL", help="Print the plan of one trial as JSON.")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a PNG of the accuracy of each cut, and of the accuracy and cost of each trial.",
)
@options.home
def command(study: str, as_json: bool, plan: int | None, picture: Path | None, home: Path | None) -> None:
    """Show STUDY: the probe accuracy at each cut, the leaderboard, the winner and its test.

    \b
    autotl show digits
    autotl show digits --plan 3 > plan.json
    autotl show digits --picture trade-offs.png
    """
    from autotl.errors import StudyError
    from autotl.report import terminal, words
    from autotl.tracking import folder
    from autotl.tracking import result as results

    found = folder.find_study(folder.home(home), study)
    if plan is not None:
        trial = next((record.plan for record in found.log.records() if record.number == plan), None)
        if trial is None:
            raise StudyError(f"Study '{study}' has no trial {plan} with a plan. List them: autotl show {found.words}")
        output.write(trial.to_json())
        return
    if picture:
        from autotl.report import pictures

        write(picture, pictures.trade_offs(found))
        output.echo(f"Written: {picture}")
        return
    if not as_json:
        terminal.show_study(found)
        return
    result = results.load(found)
    if result is None:
        assert found.definition is not None
        raise StudyError(f"Study '{study}' has no result yet; resume it: {words.go_on(found, found.definition)}")
    output.write(result.to_json())
