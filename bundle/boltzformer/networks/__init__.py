"""The network: image and text in, mask logits out."""
