"""The embedded demo: a tiny teacher, an excerpt of text, and the verb that distils the teacher on this text."""
