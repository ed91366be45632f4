"""Questions with documents and answers."""
