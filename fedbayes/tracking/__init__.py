"""What people see of a run: its directory, its progress, its pictures and its report."""
