"""Functional scoring of code models: problems, a sandbox that runs what a model wrote, pass@k; and lm-evaluation-harness.

Any sampler can be scored, a crocodil model is one of them. docs/harness.md tells how.
"""
