"""`autotl unpack`: converts an archive or a data set of another library to a folder of images."""

import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from autotl.cli import options
from autotl.errors import DataError
from autotl.report import output

if TYPE_CHECKING:
    from autotl.data.listing import Listing

_MOST_CLASSES = 30
"""Of more classes than this, only the counts of the largest and the smallest are printed."""


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--root", type=options.Existing(file_okay=False), help="Folder of torchvision's data set.")
@click.option("--label-column", metavar="NAME", help="Column, or key of each sample's JSON, with the class.")
def command(sources: tuple[str, ...], folder: Path, root: Path | None, label_column: str | None) -> None:
    """Write the images of SOURCE to FOLDER, a new or empty folder, for `autotl search FOLDER`.

    SOURCE is a zip or tar archive of an image folder; WebDataset shards, or a folder of them; a data set of
    Hugging Face's `datasets` as `save_to_disk` wrote it, or in Parquet or Arrow files; or torchvision:NAME,
    already downloaded to --root. Nothing is downloaded.

    Image files are copied unchanged; arrays become PNG. Splits become train, val and test. In class names `_`
    replaces what a folder name cannot have: a slash, a dot at the start, unprintable characters.
    torchvision's classes read their own files, and pickles only after checking their checksums.

    \b
    autotl unpack flowers.zip data/flowers
    autotl unpack shards/ data/birds
    autotl unpack beans-train.parquet data/beans --label-column labels
    autotl unpack torchvision:CIFAR10 data/cifar10 --root downloads
    """
    from autotl.data import index
    from autotl.data.foreign import unpack
    from autotl.report import terminal

    unpack.check_new(folder)
    try:
        with terminal.watcher(quiet=False) as watcher:
            source = unpack.open_source(sources, root=root, label_column=label_column, tell=watcher.note)
            unpack.write(source, folder, partial(watcher.progress, f"unpacking {source.what}"))
    except KeyboardInterrupt:
        output.echo("Stopped: nothing was written.", err=True)
        sys.exit(130)
    try:
        listing = index.find(folder)
    except DataError as error:
        output.echo(f"Written: {folder}. A search cannot read it as it is: {error}")
        return
    for line in _counts(listing):
        output.echo(line)
    output.echo(f"Next: autotl search {quote(str(folder))}")


def _counts(listing: "Listing") -> Iterator[str]:
    """The number of images of each class in each split."""
    from autotl.data.foreign.samples import FOLDERS

    counts = Counter((file.split, file.label) for file in listing.files)
    for split, name in FOLDERS.items():
        each = {label: count for (of, label), count in sorted(counts.items()) if of == split}
        if each:
            yield f"{name}: {sum(each.values()):,} images in {len(each):,} classes: {_each(each)}"


def _each(counts: dict[str, int]) -> str:
    if len(counts) <= _MOST_CLASSES:
        return ", ".join(f"{label} {count:,}" for label, count in counts.items())
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    return f"from {counts[least]:,} ({least}) to {counts[most]:,} ({most}) each"
