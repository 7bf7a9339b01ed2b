"""A kill is aimed by files that appear: none is missed, however late one looks."""

from outlast.drill.inotify import NewFiles


def test_every_new_file_is_told_of(tmp_path):
    """Files that came at once, and in folders that came with them; one that was there before is none of them."""
    (tmp_path / "old").touch()
    with NewFiles(tmp_path) as new:
        (tmp_path / "one").touch()
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "b" / "two").touch()
        (tmp_path / "three").touch()
        found = set()
        while (path := new.wait(0.0)) is not None:
            found.add(path)
        (tmp_path / "a" / "b" / "four").touch()
        assert new.wait(1.0) == tmp_path / "a" / "b" / "four"
    assert found == {tmp_path / "one", tmp_path / "a" / "b" / "two", tmp_path / "three"}
