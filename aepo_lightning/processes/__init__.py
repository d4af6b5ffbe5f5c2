"""Python functions in processes of their own, which are warm, end at a deadline whatever they do, and are replaced."""
