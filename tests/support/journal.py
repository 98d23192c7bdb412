"""A log that keeps what it is told."""


class Journal:
    """Takes the rows and notes of a run."""

    def __init__(self):
        self.rows, self.client_rows, self.notes = [], [], []

    def log(self, row):
        self.rows.append(dict(row))

    def log_clients(self, rows):
        self.client_rows += [dict(row) for row in rows]

    def note(self, text):
        self.notes.append(text)

    @property
    def numbers(self):
        """The rows without their times."""
        return [{k: v for k, v in row.items() if "second" not in k} for row in self.rows]
