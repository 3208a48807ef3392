"""Errors of the machine rather than of a trial: disk, images, database, memory, the user's Ctrl-C."""

from collections.abc import Iterator
from contextlib import contextmanager

import optuna
import sqlalchemy
import torch

from autotl.data.rows import StoreError
from autotl.errors import DataError, StudyError, one_line, out_of_memory
from autotl.study.budget import OutOfTime

STORAGE = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)
MACHINE = (KeyboardInterrupt, OutOfTime, OSError, DataError, StoreError, torch.AcceleratorError, *STORAGE)


def of_the_machine(error: BaseException) -> bool:
    """Whether an error ends the search and not only the trial, because every other trial would fail as well."""
    return isinstance(error, MACHINE) or out_of_memory(error)


@contextmanager
def one_line_each(study: str) -> Iterator[None]:
    """Turns an error that the user can fix, such as a full disk, into one line.

    Raises: StudyError.
    """
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise StudyError(
            f"{error.strerror or error}{where}. Finished trials are saved. Fix this and run the same command again."
        ) from error
    except torch.AcceleratorError as error:
        raise StudyError(
            f"The device failed: {one_line(error, 200)}. Finished trials are saved. Run the same command again in a "
            "new process."
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not (out_of_memory(error) or isinstance(error, torch.OutOfMemoryError)):
            raise
        raise StudyError(
            "Out of memory. Finished trials are saved. Free some memory and run the same command again, or start "
            "another study without the largest backbones: --study NAME --backbones …"
        ) from None
    except STORAGE as error:
        raise StudyError(
            f"Optuna's storage of study '{study}' failed: {one_line(error.__cause__ or error, 200)}. "
            "Finished trials are saved. Fix this and run the same command again."
        ) from error
