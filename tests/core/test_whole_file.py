"""Files replaced whole, or left as they were."""

from pathlib import Path

import pytest

from dlm_core.whole_file import replacing, write_whole


def test_a_file_and_its_folder_appear(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_whole(path, "grün\n")
    assert path.read_text(encoding="utf-8") == "grün\n"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_an_error_leaves_the_earlier_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.txt"
    path.write_text("earlier")
    with pytest.raises(type(error)), replacing(path) as unfinished:
        unfinished.write_text("half")
        assert path.read_text() == "earlier"
        raise error
    assert path.read_text() == "earlier" and list(tmp_path.iterdir()) == [path]


def test_an_os_error_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    path = tmp_path / "folder" / "file.txt"
    with pytest.raises(OSError, match=rf"{path} not written: \w+"):
        write_whole(path, "text")
    with (
        pytest.raises(OSError, match="other.txt not written: no space left"),
        replacing(tmp_path / "other.txt"),
    ):
        raise OSError("no space left")
