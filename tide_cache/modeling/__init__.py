"""What teacher and student share: block masks, packing, backbones, checkpoints."""
