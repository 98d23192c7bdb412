"""Every chart of the pages, as a function that draws it."""
