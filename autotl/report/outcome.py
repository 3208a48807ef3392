"""A finished study as MLflow shows it: summary, tables, pictures and model."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from autotl.errors import reason
from autotl.host import Host
from autotl.report import words
from autotl.tracking.folder import StudyFolder
from autotl.tracking.result import Result

if TYPE_CHECKING:
    from autotl.export.bundle import Bundle


class Outcome:
    """See `autotl.tracking.mlflow.Outcome`. Each method imports what it needs: a search starts with this process."""

    def __init__(self, folder: StudyFolder, cache_dir: Path) -> None:
        self._folder = folder
        self._cache_dir = cache_dir

    def words(self, result: Result) -> list[str]:
        return list(words.summary(result))

    def against(self, result: Result, control: str) -> str:
        return words.against(control, result.test, result.comparisons[control])

    def files(self) -> dict[str, str | bytes]:
        from autotl.report import pictures
        from autotl.report.frames import leaderboard, probe

        return {
            **self._page(),
            "leaderboard.csv": leaderboard(self._folder).to_csv(),
            "probe.csv": probe(self._folder).to_csv(index=False),
            "trade-offs.png": pictures.trade_offs(self._folder),
        }

    def _page(self) -> dict[str, str | bytes]:
        """The report; if it cannot be written, the reason, as the rest is still logged."""
        from autotl.report.page.write import html

        try:
            return {"report.html": html(self._folder)}
        except Exception as error:
            again = f"autotl report {self._folder.words}"
            return {"report-missing.txt": f"The report was not written: {reason(error)} Write it later: {again}\n"}

    def warm_up(self) -> None:
        from autotl.export.graph import program

        with suppress(Exception):  # not the winner yet: an error in it may not matter
            program(self.model().graph)

    def model(self) -> "Bundle":
        from autotl.backbones.catalogue import Catalogue
        from autotl.export import bundle

        host = Host.from_environment()
        host.recall(self._folder.require_definition().plugins)
        return bundle.load(self._folder.bundle, Catalogue(host, self._cache_dir))
