"""Single parts of a run, each made from its node of the configuration; `fedbayes.build` puts them together."""
