"""The server of the Flower App: the flow of the command `fedbayes`, on the grid that Flower hands out."""

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedbayes.run import run
from fedbayes.simulation.superlink import Served
from fedbayes_app.settings import configuration, go_to

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One run, from configuration to report."""
    go_to(context.run_config["directory"])
    cfg = configuration(str(context.run_config["overrides"]))
    engine = Served(device=cfg.simulation.device, threads=cfg.simulation.threads, grid=grid)
    run(cfg, None if cfg.run_dir is None else Path(cfg.run_dir), engine)
