"""What a sweep's folder says of the sweep may come from anybody: it is typed again only where it can call nothing."""

import pytest
import yaml
from processes import fedbayes

from fedbayes.commands.resume_sweep import sweep_again
from fedbayes.errors import RunError


def sweep(tmp_path, task, own):
    (tmp_path / "multirun.yaml").write_text(
        yaml.safe_dump({"hydra": {"overrides": {"task": list(task), "hydra": list(own)}}})
    )
    return [f"resume={tmp_path}"]


def test_a_sweeps_command_is_put_together_again(tmp_path):
    own = ["hydra.mode=MULTIRUN", "hydra.sweep.dir=elsewhere", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    words = sweep_again(sweep(tmp_path, ["seed=0,1"], own))
    assert words == [
        "-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
        f"hydra.sweep.dir='{tmp_path}'", f"resume='{tmp_path}'",
    ]  # fmt: skip
    assert sweep_again(["seed=0"]) == ["seed=0"]
    assert sweep_again([f"resume={tmp_path / 'none'}"]) == [f"resume={tmp_path / 'none'}"]


EVIL = "{_target_:torch.load,f:evil.pt,weights_only:false}"


@pytest.mark.parametrize("trust", ["", "my_methods"])
@pytest.mark.parametrize(
    ("task", "own"),
    [
        ([], ["hydra.callbacks.x._target_=os.system"]),
        ([], ["hydra.launcher._target_=os.system"]),
        ([], ["hydra.sweeper._target_=os.system"]),
        ([], ["hydra.searchpath=[/tmp]"]),
        ([], ["hydra/launcher=../../../../tmp/evil"]),
        ([], ["hydra/sweeper=../../../../tmp/evil"]),
        ([], ["hydra.sweeper.params={a: 'x\n', b: {_target_: os.system}}"]),
        ([], ["hydra.sweeper.custom_search_space=module.function"]),
        ([], ["hydra.sweep.subdir=../../elsewhere"]),
        ([], ["hydra.launcher.n_jobs=2\nhydra.searchpath=[/tmp]"]),
        ([], ["hydra/job_logging=other"]),
        ([], ["hydra/launcher=${oc.env:HOME}"]),
        ([f"+hydra.callbacks.x={EVIL}"], []),
        ([f"++hydra.callbacks.x={EVIL}"], []),
        (["~hydra"], []),
        (["hydra/job_logging=other"], []),
        (["--config-dir=/tmp"], []),
        (["--cfg=job"], []),
        (["-m"], []),
        (["experiment=../../../tmp/evil"], []),
        (["+experiment@x=../evil"], []),
        (["method=/tmp/evil"], []),
        (["seed=${oc.create:'{_target_: torch.load}'}"], []),
        (["optim.name=${oc.env:SECRET}"], []),
    ],
)
def test_a_sweep_that_could_call_anything_is_refused(tmp_path, monkeypatch, task, own, trust):
    monkeypatch.setenv("FEDBAYES_TRUST", trust)
    with pytest.raises(RunError, match=r"which may call or write anything; .* type the sweep again: fedbayes -m"):
        sweep_again(sweep(tmp_path, ["seed=0", *task], own))


@pytest.mark.parametrize("word", ["run_dir=/tmp/mine", "++run_dir=../mine", "run_dir=a,b", "+run_dir='/etc'"])
def test_a_sweep_writes_no_run_outside_of_its_folder(tmp_path, word):
    with pytest.raises(RunError, match="may call or write anything"):
        sweep_again(sweep(tmp_path, ["seed=0", word], []))
    inside = f"run_dir={tmp_path / 'mine'}"
    assert inside in sweep_again(sweep(tmp_path, [inside, "resume='/elsewhere'"], []))
    assert not any("/elsewhere" in one for one in sweep_again(sweep(tmp_path, [inside, "resume='/elsewhere'"], [])))


def test_what_sweeps_are_made_of_is_kept(tmp_path):
    task = ["seed=0,1", "method=glob(fed*)", "experiment=smoke", "data.root='/a b/c'", "+method.strategy.x=1",
            "partition.alpha=range(0.1,1,step=0.3)", "optim.blocks=[[head],[generator]]", "tracking=wandb"]  # fmt: skip
    assert sweep_again(sweep(tmp_path, task, []))[1:-2] == task


def test_a_sweep_goes_on_finished_jobs_are_skipped_and_a_hostile_one_calls_nothing(tmp_path):
    folder = tmp_path / "sweep"
    first = fedbayes(
        "-m", "experiment=smoke", "rounds=1", "method=fedavg_head,fedncm", "seed=0,1", f"hydra.sweep.dir={folder}",
        cwd=tmp_path,
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    jobs = sorted(path.parent for path in folder.glob("*/summary.json"))
    assert [job.name for job in jobs] == [
        "0-fedavg_head-s0", "1-fedavg_head-s1", "2-fedncm-s0", "3-fedncm-s1",
    ]  # fmt: skip
    numbers = [(job / "metrics.jsonl").read_bytes() for job in jobs]
    for name in ("summary.json", "report.html"):  # broken off after its last checkpoint
        (jobs[1] / name).unlink()
    for path in sorted(jobs[2].rglob("*"), reverse=True):  # never begun
        path.rmdir() if path.is_dir() else path.unlink()
    jobs[2].rmdir()
    stamp = (jobs[0] / "summary.json").stat().st_mtime_ns

    again = fedbayes(f"resume={folder}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (jobs[0] / "summary.json").stat().st_mtime_ns == stamp
    assert f"{jobs[0]} has finished" in again.stdout
    assert all((job / "summary.json").exists() for job in jobs)
    assert (jobs[1] / "metrics.jsonl").read_bytes() == numbers[1]
    assert "resumed after round 1" in (jobs[1] / "run.log").read_text()

    (jobs[2] / "summary.json").unlink()
    text = (folder / "multirun.yaml").read_text()
    (folder / "multirun.yaml").write_text(
        text.replace("- rounds=1", "- rounds=1\n    - method.client._target_=os.system")
    )
    hostile = fedbayes(f"resume={folder}", cwd=tmp_path)
    assert hostile.returncode == 2
    assert "names os.system, which is no target" in hostile.stderr
    assert "Traceback" not in hostile.stderr
