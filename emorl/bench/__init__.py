"""Benchmarks of operators, training steps, rewritings and models, also against the released code.

`import emorl` does not load it. Neither pytest nor a checkout is needed.
"""
