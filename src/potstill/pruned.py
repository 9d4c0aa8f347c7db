"""Import this module so that the Auto classes of transformers load models that `potstill prune` made.

    import potstill.pruned
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained("path/of/the/folder")

A model without some of its feed-forward neurons needs no import if all its layers lost equally many. See
`potstill.student.pruned`.
"""

from potstill.student.pruned import register_all

register_all()
