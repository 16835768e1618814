"""``train``: one run of the paper's kind, with the option table of the published program."""
