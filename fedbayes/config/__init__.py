"""From YAML and the command line to one resolved configuration, and from there to objects."""
