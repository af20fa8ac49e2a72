"""Tables, JSON and progress of the terminal."""
