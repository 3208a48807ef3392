"""Advice for a data set before any search: reads the images, probes the backbones, compares the best with others."""

from collections.abc import Sequence
from functools import partial

from autotl.backbones.catalogue import Catalogue
from autotl.data import index
from autotl.data.split import OPEN
from autotl.engine import device as devices
from autotl.engine import operations
from autotl.engine.bench import Bench
from autotl.engine.exact import exact
from autotl.engine.sample import Sample
from autotl.errors import PluginError, StudyError
from autotl.export import bundle
from autotl.host import Host
from autotl.plan import Network
from autotl.registry import Entry
from autotl.study import advice, estimate, probing, select, similarity
from autotl.study import pool as pools
from autotl.study.inputs import Inputs
from autotl.study.machine import one_line_each
from autotl.study.reading import read
from autotl.study.settings import Settings
from autotl.study.watch import Watcher
from autotl.tracking.advice import Advice
from autotl.tracking.folder import cache_dir
from autotl.tracking.probe import ProbeRow

SECONDS = 40.0
"""The passes of images through backbones take about as long at most."""
OPERATIONS_SECONDS = 15.0
"""So do those of changed images."""


class Advising:
    """Gives advice for the images of `settings.data`, as a search with these settings would split them."""

    def __init__(self, settings: Settings, host: Host, watcher: Watcher) -> None:
        """Raises: AutotlError for anything that cannot be searched."""
        self.settings, self.host, self.watcher = settings, host, watcher
        self.device = devices.resolve(settings.device)
        for problem in host.problems:
            self._skip(problem)
        self.strategies = list(filter(self._is_searched, host.strategies))
        place = cache_dir(settings.cache_dir)
        self.catalogue = catalogue = Catalogue(host, place, bundle.given(settings.weights), watcher.note, self._skip)
        named = catalogue.expand(settings.backbones)
        pool = pools.choose(catalogue, named, settings.backbones, settings.pool, self.device, self._skip)
        pools.announce(pool, watcher, settings.yes)
        self.pool = pools.download(catalogue, pool, settings.backbones, self._skip)

    def run(self) -> Advice:
        """Raises: AutotlError."""
        with one_line_each(self.settings.study_name), exact(self.device):
            return self._advised()

    def _advised(self) -> Advice:
        fixed = similarity.references(self.catalogue)
        settings, watcher = self.settings, self.watcher
        columns = settings.columns.or_those({}, settings.data)
        bench, inputs = read(
            settings,
            index.find(settings.data, columns),
            columns,
            [*self.pool.backbones, *fixed],
            self.catalogue,
            self.device,
            progress=partial(watcher.progress, "reading images"),
            note=watcher.note,
        )
        watcher.dataset(bench.dataset)
        classes = len(bench.dataset.classes)
        sample = Sample.of(bench, self.settings.seed, similarity.images_needed(classes))
        networks = self._affordable(bench, inputs, len(sample.shas))
        see = partial(self._see, bench)
        rows = []
        for network in networks:
            see(network, sample.shas)
            rows += probing.rows(bench, network, sample, partial(self.watcher.progress, f"probing {network.backbone}"))
        self.watcher.probed(rows)
        best = select.starting_cuts(rows)[0].backbone
        chosen = next(network for network in networks if network.backbone == best)
        found = similarity.measure(
            bench,
            chosen,
            [row for row in rows if row.backbone == best],
            fixed,
            sample=sample,
            seed=self.settings.seed,
            see=see,
            watched=lambda task: partial(self.watcher.progress, task),
        )
        given = advice.advise(len(bench.shas(*OPEN)) / classes, found, self.strategies)
        return given.model_copy(update=self._operations(bench, networks[0], rows))

    def _operations(self, bench: Bench, network: Network, rows: Sequence[ProbeRow]) -> dict[str, tuple[str, ...]]:
        """The `allowed` and `harmful` operations on images, measured on the cheapest backbone; none without time."""
        try:
            wanted = operations.operations_of(self.host.augmentations)
            if len(wanted) * operations.MOST * estimate.image_seconds(network, bench) > OPERATIONS_SECONDS:
                self.watcher.note(f"No time to measure whether the images allow {', '.join(wanted)}.")
                return {}
            (best,) = select.starting_cuts(row for row in rows if row.backbone == network.backbone)
            progress = partial(self.watcher.progress, "measuring which operations the images allow")
            see = (bench, network, best.cut, best.pooling)
            found = operations.measured(*see, wanted, self.settings.seed, progress)
        except PluginError as error:
            self._skip(error)
            return {}
        return {
            name: tuple(each.operation for each in found if each.harmful == is_harmful)
            for name, is_harmful in (("allowed", False), ("harmful", True))
        }

    def _is_searched(self, entry: Entry) -> bool:
        """Whether a search that names no strategies tries this one."""
        try:
            return getattr(entry.item, "by_default", True)
        except PluginError as error:
            self._skip(error)
            return False

    def _skip(self, problem: object) -> None:
        self.settings.tolerate(problem)
        self.watcher.note(f"Warning: {problem}")

    def _affordable(self, bench: Bench, inputs: Inputs, images: int) -> list[Network]:
        """The pretrained backbones that there is time for, cheapest first. The best one is needed at random, too.

        Raises: StudyError if there is none.
        """
        kept: list[Network] = []
        left = SECONDS
        infos = map(self.catalogue.info, self.pool.backbones)
        for info in sorted(infos, key=lambda info: info.flops(info.names[-1])):
            network = inputs.network(info.name, self.settings.seed)
            if not self.catalogue.is_pretrained(info.name):
                continue
            try:
                bench.features.try_out(network, bench.shas(*OPEN))
                seconds = estimate.image_seconds(network, bench) * images
            except PluginError as error:
                self._skip(error)
                continue
            if 2 * seconds > left and kept:
                self.watcher.note(f"Without {info.name}: it would take too long here.")
            else:
                kept.append(network)
                left -= seconds
        if not kept:
            raise StudyError("No pretrained backbone is left to compare with. Name some with --backbones.")
        return kept

    def _see(self, bench: Bench, network: Network, shas: Sequence[str]) -> None:
        bench.features.fill(network, shas, partial(self.watcher.progress, f"features of {network.backbone}"))
