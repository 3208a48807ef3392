import pytest

from autotl.errors import masked
from autotl.files import holds_only, replacing, settle, where_it_is, write


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    with replacing(folder) as made:
        write(made / "a", "1")
    with pytest.raises(FileNotFoundError), replacing(folder) as made:
        write(made / "a", (tmp_path / "missing").read_text())
    assert (folder / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with replacing(folder) as made:
        write(made / "b", "3")
    assert [path.name for path in folder.iterdir()] == ["b"]


def test_a_reader_finds_a_folder_that_is_being_replaced_and_moves_nothing(tmp_path):
    folder = tmp_path / "model"
    write(folder / "a", "1")
    assert where_it_is(folder) == folder
    folder.rename(tmp_path / ".model.old")  # where a writer is, or was killed
    assert (where_it_is(folder) / "a").read_text() == "1"
    assert not folder.exists()
    settle(folder)
    assert (folder / "a").read_text() == "1"


def test_what_a_script_leaves_beside_itself_may_be_replaced(tmp_path):
    write(tmp_path / "predict.py", "")
    write(tmp_path / "__pycache__" / "preprocess.pyc", "")
    assert holds_only(tmp_path, ("predict.py",), mark="predict.py")
    assert not holds_only(tmp_path, ("predict.py", "plan.json"), mark="plan.json")
    write(tmp_path / "thesis.tex", "")
    assert not holds_only(tmp_path, ("predict.py",), mark="predict.py")


def test_passwords_are_not_shown():
    assert masked("postgresql://me:secret@host:5432/x") == "postgresql://me:***@host:5432/x"
    assert masked("postgresql://host/x?user=me&password=secret&a=b") == "postgresql://host/x?user=me&password=***&a=b"
    for plain in ("sqlite:////tmp/a.db", "http://127.0.0.1:5000", "postgresql://me@host/x"):
        assert masked(plain) == plain
