"""What is logged while the parts are made is in `run.log`, and on the terminal once."""

import logging

import numpy as np
from PIL import Image

from fedbayes.run import simulate
from fedbayes.storage.early_log import collected


def test_left_out_images_are_in_the_log_of_the_run(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(12):
            path = tmp_path / "photos" / label / f"{i}.png"
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos/cat/cut.png").write_bytes(b"no image")
    (tmp_path / "photos/bird").mkdir()
    settings = ["data=imagefolder", f"data.root={tmp_path / 'photos'}", "data.on_error=skip", "data.image_size=8"]
    simulate(["experiment=smoke", "clients=2", "rounds=1", *settings, f"run_dir={tmp_path / 'run'}"])
    lines = (tmp_path / "run/run.log").read_text().splitlines()
    (line,) = [line for line in lines if "left out" in line]
    assert "WARNING" in line
    assert "cat/cut.png" in line
    assert "the first bird" in line


def test_where_nobody_listens_warnings_are_shown_as_python_shows_them(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with collected() as records:
        logging.getLogger("fedbayes").warning("images are missing")
    assert [record.getMessage() for record in records] == ["images are missing"]
    assert capsys.readouterr().err == "images are missing\n"
    logging.getLogger("fedbayes").warning("later")
    assert len(records) == 1
