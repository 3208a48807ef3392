"""The search: from the images to the tested bundle, resuming where an earlier run of the study stopped."""

from collections.abc import Iterator
from contextlib import contextmanager

from autotl.engine.exact import exact
from autotl.files import settle
from autotl.host import Host
from autotl.study import pool as pools
from autotl.study import team
from autotl.study.budget import Budget
from autotl.study.choices import Choices
from autotl.study.closing import finish
from autotl.study.crew import Alone, Crew, Hands
from autotl.study.fixed import not_drawn
from autotl.study.machine import one_line_each
from autotl.study.opening import Opened, Opening
from autotl.study.settings import Settings
from autotl.study.team import Team
from autotl.study.trials import Trials
from autotl.study.watch import Watcher
from autotl.study.work import Work
from autotl.study.worker import Worker
from autotl.tracking.result import Result
from autotl.tracking.shipping import PATIENCE, Shipping, tracking_option, tracking_uri


class Search:
    """One search in one study folder: opens the study, does its work, closes it."""

    def __init__(self, settings: Settings, host: Host, watcher: Watcher, began: float) -> None:
        """`began`: when the user started the search, a value of `time.monotonic()`.

        Raises: AutotlError for anything that cannot be searched; nothing has been written by then.
        """
        self.watcher, budget = watcher, Budget(settings.budget, began)
        watcher.budget(budget.until_the_end)
        self.choices = choices = Choices(settings, host, watcher)
        self.opening = Opening(choices, budget)
        self.settings = choices.settings
        self.folder, self.catalogue = choices.folder, choices.catalogue
        self.device, self.cache_dir = choices.device, choices.cache_dir
        self.devices = team.devices(self.settings, self.device)
        self._shipping: Shipping | None = None

    def run(self) -> Result:
        """From the images to the tested bundle; resumes where an earlier run of the study stopped.

        Raises: StudyError, also if a disk or a database fails; finished trials are saved.
        """
        pools.announce(self.choices.pool, self.watcher, self.settings.yes)
        try:
            with one_line_each(self.folder.name), self.folder.lock(), exact(self.device), self._team() as others:
                settle(self.folder.bundle)
                opened = self.opening.open()
                self._begin_logging()
                crew = self._crew(opened, others)
                Work(opened, crew).run()
                result = finish(opened, crew)
                self._report_what_was_not_drawn()
                return result
        finally:
            if self._shipping:
                self._shipping.leave()

    def end_logging(self) -> None:
        """Wait, up to a limit, until everything is logged to MLflow."""
        if not self._shipping:
            return
        uri = self.settings.tracking_uri
        again = f"{self.folder.words}{tracking_option(uri)}"
        at_once = self._shipping.wait(1)
        if not at_once:
            self.watcher.note("Logging the rest to MLflow …")
        if not self._shipping.wait(PATIENCE):
            self.watcher.note(f"Logging takes long and continues in the background. To make sure: autotl log {again}")
        elif self._shipping.failed:
            self.watcher.note(f"MLflow does not have the whole study. Log it later: autotl log {again}")
        elif not at_once:
            self.watcher.note(f"Done. Open it: autotl ui {again}")

    def _begin_logging(self) -> None:
        if self.settings.mlflow:
            uri = tracking_uri(self.settings.tracking_uri, self.folder.path.parent)
            self._shipping = Shipping(self.folder, uri, self.cache_dir, self.watcher.note)

    @contextmanager
    def _team(self) -> Iterator[Team | None]:
        """The processes of the search, if it has several; they end with it."""
        if len(self.devices) == 1:
            yield None
            return
        with Team(self.folder.path, self.devices, self.watcher) as started:
            yield started

    def _crew(self, opened: Opened, others: Team | None) -> Crew:
        trials = Trials(opened.suggestions, self.folder, saves=others is None)
        hands: Hands
        if others:
            others.invite(opened, self.choices.columns)
            hands = others
        else:
            hands = Alone(Worker(opened.bench, trials, self.watcher, opened.budget))
        return Crew(opened.study, self.folder, trials, hands)

    def _report_what_was_not_drawn(self) -> None:
        drawn = (name for record in self.folder.log.records() for name in record.params)
        for problem in not_drawn(self.settings.set, drawn):
            self.watcher.note(f"Warning: --set had no effect on any trial: {problem}")
