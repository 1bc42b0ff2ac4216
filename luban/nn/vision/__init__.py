"""The classic families of networks over images, one short file each, and the weights that others published for them."""
