"""What a tensor is for: roles, the axes that they imply, and how they are read from names or shapes."""
