"""What the console scripts do beside a run."""
