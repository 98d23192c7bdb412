"""fedbayes as a Flower App: `flower_app/run.sh 'method=fedvpt rounds=3'`, or `flwr run flower_app`."""
