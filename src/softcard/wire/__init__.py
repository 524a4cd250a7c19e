"""What passes between processes, as values: no threads, and no meaning beyond the format."""
