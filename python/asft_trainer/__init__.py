"""asft, a trainer that fine-tunes language models with a penalty for leaving their alignment direction.

The program is the command `asft`, or `python -m asft_trainer`. The module asft_trainer.penalty has the penalty for a loop of
one's own in PyTorch; it needs torch and safetensors.
"""
