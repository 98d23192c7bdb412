"""The page of results is what the tables give."""

import results_page


def test_the_committed_page_is_the_generated_one():
    assert results_page.PAGE.read_text(encoding="utf-8") == results_page.page()


def test_every_file_is_on_the_page_and_says_how_it_was_made():
    names = {path.stem for path in results_page.RESULTS.glob("*.csv")}
    assert names == {name for section in results_page.SECTIONS.values() for name in section} | {"candidates"}
    for name in names:
        header, table = results_page.read(name)
        assert len(table), name
        for run in header["runs"].values():
            assert {"command", "machine", "minutes", "date", "commit"} <= set(run), name
        if "run" in table:
            assert set(table["run"]) == set(header["runs"]), name
