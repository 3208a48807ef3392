"""What is wrong with the machine and not with a trial: disk, images, database, memory, the user's Ctrl-C."""

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
    """Whether an error ends the search and not the trial alone: it would end every other trial, too."""
    return isinstance(error, MACHINE) or out_of_memory(error)


@contextmanager
def one_line_each(study: str) -> Iterator[None]:
    """What a user can put right, such as a full disk, becomes an error in one line.

    Raises: StudyError.
    """
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise StudyError(
            f"{error.strerror or error}{where}. What was done is kept; put this right and say the same again."
        ) from error
    except torch.AcceleratorError as error:
        raise StudyError(
            f"The device fails: {one_line(error, 200)}. What was done is kept; say the same again in a new process."
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not (out_of_memory(error) or isinstance(error, torch.OutOfMemoryError)):
            raise
        raise StudyError("The memory did not do. What was done is kept; leave out the largest backbones.") from None
    except STORAGE as error:
        raise StudyError(
            f"Optuna's storage of study '{study}' fails: {one_line(error.__cause__ or error, 200)}. "
            "What was done is kept; put this right and say the same again."
        ) from error
