import pytest

from autotl.errors import StudyError, masked, one_line, shortened
from autotl.files import append_line, holds_only, replacing, settle, where_it_is, write


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


def test_a_reader_finds_a_folder_that_is_being_replaced_and_changes_nothing(tmp_path):
    folder = tmp_path / "model"
    write(folder / "a", "1")
    assert where_it_is(folder) == folder
    folder.rename(tmp_path / ".model.old")  # the state while a writer runs, or after it was killed
    assert (where_it_is(folder) / "a").read_text() == "1"
    assert not folder.exists()
    settle(folder)
    assert (folder / "a").read_text() == "1"


def test_files_that_a_script_leaves_in_its_folder_may_be_replaced(tmp_path):
    write(tmp_path / "predict.py", "")
    write(tmp_path / "__pycache__" / "preprocess.pyc", "")
    assert holds_only(tmp_path, ("predict.py",), mark="predict.py")
    assert not holds_only(tmp_path, ("predict.py", "plan.json"), mark="plan.json")
    write(tmp_path / "thesis.tex", "")
    assert not holds_only(tmp_path, ("predict.py",), mark="predict.py")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host:5432/x", "postgresql://me:***@host:5432/x"),
        ("postgresql+psycopg://me:a/secret@host/x", "postgresql+psycopg://me:***@host/x"),
        ("postgresql://me:a@secret@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:a?secret#x@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:a secret@host/x", "postgresql://me:***@host/x"),
        ("postgresql://host/x?user=me&password=secret&a=b", "postgresql://host/x?user=me&password=***&a=b"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dsecret", "mssql+pyodbc:///?odbc_connect=***"),
        ("https://secret@host:5000/x", "https://***@host:5000/x"),
        ("https://secret:x-oauth-basic@host", "https://***@host"),
        ("https://sec/ret@host", "https://***@host"),
        ("s3://key:secret@bucket", "s3://***@bucket"),
        ("https://host/x?access_token=secret&b=c", "https://host/x?access_token=***&b=c"),
        ("https://host/x?X-Amz-Signature=secret#token=secret", "https://host/x?X-Amz-Signature=***"),
    ],
)
def test_secrets_of_a_url_are_not_shown(url, shown):
    assert masked(url) == shown
    if " " not in url:
        assert str(StudyError(f"{url} does not answer")) == f"{shown} does not answer"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////tmp/me@home/a.db",
        "http://127.0.0.1:5000",
        "http://host/#/experiments?orderByKey=x&asc=false",
        "postgresql://me@host/x?sslmode=require&sslkey=/a/b",
        "file:///home/me@home/mlruns",
    ],
)
def test_a_url_without_a_secret_is_shown_as_it_is(url):
    assert masked(url) == url


@pytest.mark.parametrize(("most", "says"), [(9, "layer4.10"), (8, "laye….10"), (5, "la…10"), (2, "l…")])
def test_both_ends_of_a_long_name_are_shown(most, says):
    assert shortened("layer4.10", most) == says


def test_both_ends_of_a_long_reason_are_shown_because_the_advice_is_at_the_end():
    line = one_line(f"This is wrong\n{'and here is how ' * 50}\nSet FIX=true to fix it.", 60)
    assert len(line) == 60 and line.startswith("This is wrong and") and line.endswith("Set FIX=true to fix it.")


def test_only_the_owner_can_read_a_file_that_may_contain_a_url(tmp_path):
    write(tmp_path / "private", "1", private=True)
    append_line(tmp_path / "log", "1")
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("private", "log")] == [0o600, 0o600]
