"""What a resumed run finds of the rows that were written before."""

import json

from fedbayes.storage.run_dir import keep_rounds, read_rows


def test_rows_written_after_a_round_are_dropped_though_they_are_of_an_earlier_round(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [(1, "train"), (1, "validation"), (2, "train"), (2, "validation"), (2, "test"), (1, "test")]
    path.write_text("".join(json.dumps({"round": at, "phase": phase}) + "\n" for at, phase in rows) + '{"round": 3')
    keep_rounds(path, 2)
    assert [(row["round"], row["phase"]) for row in read_rows(path)] == rows
    keep_rounds(path, 1)
    assert [(row["round"], row["phase"]) for row in read_rows(path)] == rows[:2]
