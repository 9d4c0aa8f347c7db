"""The BiLSTM that a task teacher teaches (Tang et al. 2019, arXiv 1903.12136): its model, and how a new one begins.

`import potstill.bilstm.model` registers the model with transformers' Auto classes. `import potstill.bilstm.config`
registers only its config, and needs no torch.
"""
