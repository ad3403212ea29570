"""The networks: EfficientNet, the motion network, CLIP and the fusion head."""
