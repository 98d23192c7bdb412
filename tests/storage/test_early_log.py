"""What is logged while the parts are made is in `run.log`, and on the terminal once."""

import logging

from side_images import SIDES, paint

from fedbayes.run import simulate
from fedbayes.storage.early_log import collected


def test_left_out_images_are_in_the_log_of_the_run(tmp_path, no_pictures):
    photos = paint(tmp_path / "photos", "ink", list(SIDES))
    (photos / "ink" / "left" / "cut.png").write_bytes(b"no image")
    settings = ["data=imagefolder", f"data.root={photos}", "data.on_error=skip", "data.image_size=16"]
    simulate(["experiment=smoke", "clients=2", "rounds=1", *settings, f"run_dir={tmp_path / 'run'}"])
    (line,) = [line for line in (tmp_path / "run/run.log").read_text().splitlines() if "left out" in line]
    assert "WARNING" in line
    assert "left/cut.png" in line


def test_where_nobody_listens_warnings_are_shown_as_python_shows_them(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with collected() as records:
        logging.getLogger("fedbayes").warning("images are missing")
    assert [record.getMessage() for record in records] == ["images are missing"]
    assert capsys.readouterr().err == "images are missing\n"
    logging.getLogger("fedbayes").warning("later")
    assert len(records) == 1
