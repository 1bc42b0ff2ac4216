"""Finding things in an image: geometry of boxes, which prediction learns which of them, regions of a feature map."""
