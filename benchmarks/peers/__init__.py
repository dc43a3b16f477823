"""Published tools side by side with this one, on equal files; each in an environment of its own, never a dependency."""
