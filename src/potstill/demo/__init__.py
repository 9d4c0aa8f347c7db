"""The embedded default: a tiny teacher, an excerpt of text, and the verb that distils one on the other."""
