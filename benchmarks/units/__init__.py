"""Small convolutional and recurrent networks, their symmetries, and what the detector says of both."""
