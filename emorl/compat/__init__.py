"""Other packages' checkpoints, and their slot attention modules with ours underneath.

`lucidrains`, `evelinehong`, `ocl`, `slate`, `videosaur` and `genera1z` have the names,
constructors, calls and state dicts of theirs, and need torch alone.
"""
